# An agent whose tool is an Elixir function and whose answer is shown as it is written, and a
# second run that is cancelled half-way:
#
#     BRIDGE_PYTHON=/path/to/venv/bin/python elixir examples/elixir/agent.exs
#
# BRIDGE_MODEL (openai/gpt-4o-mini, say), BRIDGE_API_BASE and OPENAI_API_KEY choose the model;
# without BRIDGE_MODEL it is the embedded offline reader. Requests are JSON and written by hand
# here, and a small module reads the replies, so that no package is needed.

defmodule SmallJson do
  # A string or nil as JSON.
  def encode(nil), do: "null"
  def encode(text), do: ~s("#{Regex.replace(~r/["\\\x00-\x1f]/, text, &escape/1)}")
  defp escape(char), do: "\\u00" <> Base.encode16(char)

  # Reads what is JSON; does not look for all that is not.
  def decode(text) do
    tokens = Regex.scan(~r/"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]|[^\s,:{}\[\]]+/, text)
    {value, []} = tokens |> List.flatten() |> value()
    value
  end

  defp value([open | rest]) when open in ["{", "["], do: items(rest, [])
  defp value([token | rest]), do: {scalar(token), rest}

  defp items(["]" | rest], list), do: {Enum.reverse(list), rest}

  defp items(["}" | rest], list) do
    {list |> Enum.reverse() |> Enum.chunk_every(2) |> Map.new(&List.to_tuple/1), rest}
  end

  defp items(tokens, list) do
    {value, rest} = value(tokens)
    items(rest, [value | list])
  end

  defp scalar("true"), do: true
  defp scalar("false"), do: false
  defp scalar("null"), do: nil

  defp scalar("\"" <> text) do
    text = binary_part(text, 0, byte_size(text) - 1)
    Regex.replace(~r/(?:\\u[0-9a-f]{4})+|\\./i, text, &unescape/1)
  end

  defp scalar(number) do
    {value, ""} = if number =~ ~r/[.e]/i, do: Float.parse(number), else: Integer.parse(number)
    value
  end

  # Neighbours are read together: a character past 0xFFFF is a pair of them.
  defp unescape("\\u" <> _ = units) do
    units = units |> String.replace("\\u", "") |> Base.decode16!(case: :mixed)
    :unicode.characters_to_binary(units, :utf16)
  end

  defp unescape(<<?\\, char>>) do
    Map.get(%{?b => "\b", ?f => "\f", ?n => "\n", ?r => "\r", ?t => "\t"}, char, <<char>>)
  end
end

defmodule Tools do
  # What the agent may call. The worker has looked at the arguments before they come here.
  def run("temperature", %{"city" => city}), do: "It is 21 degrees in #{city}."
end

defmodule Worker do
  # The reply to a call, and the state that its events left: on_event makes a state of each
  # event, its data and the state before.
  def call(port, id, command, args, state \\ nil, on_event \\ nil) do
    head = ~s("id": #{id}, "command": "#{command}", "stream": #{on_event != nil})
    Port.command(port, ~s({#{head}, "args": #{args}}))
    {reply, state} = await(port, id, state, on_event)
    if reply["code"] not in [nil, "cancelled"], do: raise("#{command} failed: #{reply["error"]}")
    {reply, state}
  end

  defp await(port, id, state, on_event) do
    receive do
      {^port, {:data, frame}} ->
        case SmallJson.decode(frame) do
          %{"id" => ^id, "success" => _} = reply ->
            {reply, state}

          %{"id" => ^id, "event" => event, "data" => data} ->
            await(port, id, on_event.(event, data, state), on_event)

          %{"id" => asked, "command" => "call_tool", "call_id" => ^id, "args" => args} ->
            Port.command(port, ~s({"id": #{SmallJson.encode(asked)}, #{answer(args)}}))
            await(port, id, state, on_event)

          _of_another_call ->
            await(port, id, state, on_event)
        end

      {^port, {:exit_status, status}} ->
        raise "the worker ended with status #{status}: is dspex-bridge installed?"
    after
      60_000 -> raise "nothing came from the worker within a minute"
    end
  end

  # A slow tool would run in a process of its own, so that frames go on being read meanwhile.
  defp answer(%{"name" => name, "args" => args}) do
    ~s("success": true, "result": #{SmallJson.encode(Tools.run(name, args))})
  rescue
    error -> ~s("success": false, "error": #{SmallJson.encode(Exception.message(error))})
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
    env = fn name -> name |> System.get_env() |> SmallJson.encode() end
    api = ~s("api_base": #{env.("BRIDGE_API_BASE")}, "api_key": #{env.("OPENAI_API_KEY")})
    ~s({"model": #{env.("BRIDGE_MODEL")}, #{api}})
  else
    ~s({"provider": "offline"})
  end

tool = ~s({
  "name": "temperature", "description": "The temperature in a city.",
  "args": {"city": {"type": "string"}}
})

program = ~s({
  "id": "agent", "program_type": "react",
  "signature": {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
})

run = fn city ->
  ~s({"program_id": "agent", "inputs": {"question": "What is the temperature in #{city}?"}})
end

Worker.call(port, 1, "hello", ~s({"offers": {"tools": true}}))
Worker.call(port, 2, "configure_lm", model)
Worker.call(port, 3, "register_tools", ~s({"tools": [#{tool}]}))
Worker.call(port, 4, "create_program", program)

# The first run shows what happens; its state is how many chunks of the answer came.
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

# The second run is cancelled at its first chunk, and `cancelled` is its one reply. What may
# still come behind it, the reply to `cancel` or a last call of the tool, needs no answer.
cancel = fn
  "chunk", _data, :running ->
    Port.command(port, ~s({"id": 7, "command": "cancel", "args": {"id": 6}}))
    :cancelling

  _event, _data, state ->
    state
end

{reply, _} = Worker.call(port, 6, "execute_program", run.("Vienna"), :running, cancel)
IO.puts("second run: #{reply["code"] || "over before it was cancelled"}")

Worker.call(port, 8, "shutdown", "{}")

receive do
  {^port, {:exit_status, 0}} -> IO.puts("worker ended")
after
  5_000 -> raise "the worker did not end"
end
