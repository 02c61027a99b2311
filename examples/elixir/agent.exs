# Runs an agent that calls an Elixir function and streams its answer, and then a second run that is
# cancelled half-way:
#
#     BRIDGE_PYTHON=/path/to/venv/bin/python elixir examples/elixir/agent.exs
#
# BRIDGE_MODEL (for example openai/gpt-4o-mini), BRIDGE_API_BASE and OPENAI_API_KEY select the model;
# without BRIDGE_MODEL it is the built-in offline model. Requests and replies are Erlang terms, so
# no package is needed. The client in elixir/ does all of this, and more.

defmodule Tools do
  # The tools of the agent. The worker has checked the arguments.
  def run("temperature", %{"city" => city}), do: "It is 21 degrees in #{city}."
end

defmodule Worker do
  # Returns the reply to a call, and the last state: on_event returns the new state from the name
  # of an event, its data and the state.
  def call(port, id, command, args, state \\ nil, on_event \\ nil) do
    send_term(port, %{id: id, command: command, args: args, stream: on_event != nil})
    {reply, state} = await(port, id, state, on_event)
    if reply["code"] not in [nil, "cancelled"], do: raise("#{command} failed: #{reply["error"]}")
    {reply, state}
  end

  def send_term(port, term), do: Port.command(port, :erlang.term_to_binary(term))

  defp await(port, id, state, on_event) do
    receive do
      {^port, {:data, frame}} ->
        case :erlang.binary_to_term(frame, [:safe]) do
          %{"id" => ^id, "success" => _} = reply ->
            {reply, state}

          %{"id" => ^id, "event" => event, "data" => data} ->
            await(port, id, on_event.(event, data, state), on_event)

          %{"id" => asked, "command" => "call_tool", "call_id" => ^id, "args" => args} ->
            send_term(port, Map.put(answer(args), :id, asked))
            await(port, id, state, on_event)

          _of_another_call ->
            await(port, id, state, on_event)
        end

      {^port, {:exit_status, status}} ->
        raise "the worker ended with status #{status}: is dspex-bridge installed?"
    after
      60_000 -> raise "no message from the worker within a minute"
    end
  end

  # A slow tool should run in its own process, so that this one can read frames in the meantime.
  defp answer(%{"name" => name, "args" => args}) do
    %{success: true, result: Tools.run(name, args)}
  rescue
    error -> %{success: false, error: Exception.message(error)}
  end
end

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

model =
  if System.get_env("BRIDGE_MODEL") do
    %{
      model: System.get_env("BRIDGE_MODEL"),
      api_base: System.get_env("BRIDGE_API_BASE"),
      api_key: System.get_env("OPENAI_API_KEY")
    }
  else
    %{provider: "offline"}
  end

tool = %{
  name: "temperature",
  description: "The temperature in a city.",
  args: %{city: %{type: "string"}}
}

program = %{
  id: "agent",
  program_type: "react",
  signature: %{inputs: [%{name: "question"}], outputs: [%{name: "answer"}]}
}

run = fn city ->
  %{program_id: "agent", inputs: %{question: "What is the temperature in #{city}?"}}
end

Worker.call(port, 1, "hello", %{offers: %{tools: true}})
Worker.call(port, 2, "configure_lm", model)
Worker.call(port, 3, "register_tools", %{tools: [tool]})
Worker.call(port, 4, "create_program", program)

# The first run prints its events; the state is the number of chunks of the answer.
show = fn
  "chunk", %{"field" => "answer", "text" => text}, count ->
    IO.write(text)
    count + 1

  "tool_call", %{"name" => name, "args" => args}, count ->
    IO.puts("tool call: #{name} #{inspect(args)}")
    count

  "tool_result", %{"result" => result}, count ->
    IO.puts("tool result: #{inspect(result)}")
    count

  _event, _data, count ->
    count
end

{reply, count} = Worker.call(port, 5, "execute_program", run.("Graz"), 0, show)
IO.puts("\nanswer: #{reply["result"]["outputs"]["answer"]} (#{count} chunks)")

# The second run is cancelled at its first chunk, and its only reply is `cancelled`. Messages that may
# follow, the reply to `cancel` or a last call of the tool, need no answer.
cancel = fn
  "chunk", _data, :running ->
    Worker.send_term(port, %{id: 7, command: "cancel", args: %{id: 6}})
    :cancelling

  _event, _data, state ->
    state
end

{reply, _} = Worker.call(port, 6, "execute_program", run.("Vienna"), :running, cancel)
IO.puts("second run: #{reply["code"] || "over before it was cancelled"}")

Worker.call(port, 8, "shutdown", %{})

receive do
  {^port, {:exit_status, 0}} -> IO.puts("worker ended")
after
  5_000 -> raise "the worker did not end"
end
