# From an Elixir program to a DSPy answer over a port, with nothing but OTP:
#
#     BRIDGE_PYTHON=/path/to/venv/bin/python elixir examples/elixir/question.exs
#
# Requests are JSON and written by hand here, so that no package is needed.

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
  Port.command(port, ~s({"id": #{id}, "command": "#{command}", "args": #{args}}))

  receive do
    {^port, {:data, reply}} ->
      unless reply =~ ~s("success":true), do: raise("#{command} failed: #{reply}")
      reply

    {^port, {:exit_status, status}} ->
      raise "the worker ended with status #{status}: is dspex-bridge installed for #{python}?"
  after
    60_000 -> raise "no reply to #{command} within a minute"
  end
end

signature = ~s({
  "name": "PassageQuestion",
  "inputs": [{"name": "question", "type": "string"}, {"name": "passage", "type": "string"}],
  "outputs": [{"name": "answer", "type": "string"}]
})

inputs = ~s({
  "question": "Which river flows through Vienna?",
  "passage": "Vienna is the capital of Austria. The river Danube flows through Vienna."
})

call.(1, "configure_lm", ~s({"provider": "offline"}))
call.(2, "create_program", ~s({"id": "qa", "signature": #{signature}}))
reply = call.(3, "execute_program", ~s({"program_id": "qa", "inputs": #{inputs}}))

[_, answer] = Regex.run(~r/"answer":"([^"]*)"/, reply)
IO.puts("answer: #{answer}")

call.(4, "shutdown", "{}")

receive do
  {^port, {:exit_status, 0}} -> IO.puts("worker ended")
after
  5_000 -> raise "the worker did not end"
end
