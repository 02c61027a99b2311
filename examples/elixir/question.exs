# Runs a DSPy program over a port, with nothing but OTP:
#
#     BRIDGE_PYTHON=/path/to/venv/bin/python elixir examples/elixir/question.exs
#
# Requests and replies are Erlang terms, so no package is needed. The client in elixir/ does all of
# this, and more.

python =
  System.get_env("BRIDGE_PYTHON") || System.find_executable("python3") ||
    raise "no Python: set BRIDGE_PYTHON to the interpreter that has dspex-bridge installed"

port =
  Port.open({:spawn_executable, python}, [
    :binary,
    :exit_status,
    :hide,
    {:packet, 4},
    {:args, ["-P", "-m", "bridge", "worker"]},
    {:busy_limits_port, {4_000_000, 8_000_000}}
  ])

call = fn id, command, args ->
  Port.command(port, :erlang.term_to_binary(%{id: id, command: command, args: args}))

  receive do
    {^port, {:data, frame}} ->
      case :erlang.binary_to_term(frame, [:safe]) do
        %{"id" => ^id, "success" => true, "result" => result} -> result
        %{"error" => error} -> raise "#{command} failed: #{error}"
      end

    {^port, {:exit_status, status}} ->
      raise "the worker ended with status #{status}: is dspex-bridge installed for #{python}?"
  after
    60_000 -> raise "no reply to #{command} within a minute"
  end
end

signature = %{
  name: "PassageQuestion",
  inputs: [%{name: "question", type: "string"}, %{name: "passage", type: "string"}],
  outputs: [%{name: "answer", type: "string"}]
}

inputs = %{
  question: "Which river flows through Vienna?",
  passage: "Vienna is the capital of Austria. The river Danube flows through Vienna."
}

call.(1, "configure_lm", %{provider: "offline"})
call.(2, "create_program", %{id: "qa", signature: signature})
result = call.(3, "execute_program", %{program_id: "qa", inputs: inputs})
IO.puts("answer: #{result["outputs"]["answer"]}")

call.(4, "shutdown", %{})

receive do
  {^port, {:exit_status, 0}} -> IO.puts("worker ended")
after
  5_000 -> raise "the worker did not end"
end
