defmodule DSPex.PythonBridge.MockVectorsTest do
  # mock.json has the replies of a worker; test/vectors_test.exs of the Python package makes it.
  use ExUnit.Case, async: true

  alias DSPex.PythonBridge.{Bridge, Mock}
  alias DSPex.PythonBridge.Mock.Declarations

  @file_name "test/fixtures/vectors/mock.json"
  @date "\\d{4}-\\d\\d-\\d\\d"
  @time "\\d\\d:\\d\\d(:\\d\\d)?"

  setup_all do
    {:ok, vectors: @file_name |> File.read!() |> SmallJSON.decode!()}
  end

  names =
    @file_name |> File.read!() |> SmallJSON.decode!() |> Map.fetch!("conversations") |> Map.keys()

  for name <- names do
    test "#{name}: the double answers as the worker", %{vectors: vectors} do
      conversation = vectors["conversations"][unquote(name)]
      test = self()

      tools =
        for {name, result} <- vectors["tools"] do
          DSPex.Tool.new(name, "", [], fn args ->
            send(test, {:tool, %{"name" => name, "args" => args, "session_id" => "default"}})
            result
          end)
        end

      quota = conversation["flags"]["session_programs"]
      options = [quota: quota, programs: conversation["programs"]]
      bridge = start_supervised!({Mock, options})

      # The functions, without a request to the worker: the conversation registers the tools itself.
      connection = DSPex.PythonBridge.Connection.fetch!(bridge)

      DSPex.PythonBridge.Functions.put(
        connection.functions,
        "default",
        DSPex.PythonBridge.Functions.of_tools(tools)
      )

      metrics = for {name, score} <- vectors["metrics"], do: {name, fn _run -> score end}
      Bridge.register(bridge, %{metrics: Map.new(metrics)}, [])

      # A bridge itself refuses args that are a list.
      for %{"request" => request, "reply" => expected} <- conversation["exchanges"],
          request["args"] == [] or is_map(request["args"]) do
        assert shaped(answer(bridge, request, vectors["volatile"])) == shaped(expected),
               inspect(request)
      end
    end
  end

  test "the double has the commands of a worker", %{vectors: vectors} do
    declared =
      for {name, {lane, idempotent, args}} <- Declarations.all(), into: %{} do
        names = if args == :unchecked, do: [], else: args |> Map.keys() |> Enum.sort()
        {name, %{"lane" => lane, "idempotent" => idempotent, "args" => names}}
      end

    assert declared == vectors["commands"]
  end

  defp answer(bridge, request, volatile) do
    options = if id = request["session_id"], do: [session_id: id], else: []

    reply =
      case Bridge.call(bridge, request["command"], request["args"], options) do
        {:ok, result} ->
          %{"result" => steady(result, volatile)}

        {:error, error} ->
          %{
            "code" => error.wire_code,
            "error" => error.message,
            "details" => steady(error.details, volatile)
          }
      end

    case tools() do
      [] -> reply
      called -> Map.put(reply, "tools", called)
    end
  end

  defp tools do
    receive do
      {:tool, call} -> [call | tools()]
    after
      0 -> []
    end
  end

  # As in the vectors: nil in place of what differs each time.
  defp steady(map, volatile) when is_map(map) do
    Map.new(map, fn {key, value} ->
      {key, if(key in volatile, do: nil, else: steady(value, volatile))}
    end)
  end

  defp steady(list, volatile) when is_list(list), do: Enum.map(list, &steady(&1, volatile))
  defp steady(other, _volatile), do: other

  # The types of outputs in place of their values.
  defp shaped(%{"result" => %{"results" => rows} = result} = reply),
    do: %{reply | "result" => %{result | "results" => Enum.map(rows, &shaped_row/1)}}

  defp shaped(%{"result" => result} = reply), do: %{reply | "result" => shaped_row(result)}
  defp shaped(reply), do: reply

  defp shaped_row(%{"outputs" => outputs} = row),
    do: %{row | "outputs" => Map.new(outputs, fn {name, value} -> {name, shape(value)} end)}

  defp shaped_row(row), do: row

  defp shape(map) when is_map(map), do: {:map, map |> Map.values() |> Enum.map(&shape/1)}
  defp shape(list) when is_list(list), do: Enum.map(list, &shape/1)
  defp shape(nil), do: nil
  defp shape(value) when is_boolean(value), do: :boolean
  defp shape(value) when is_integer(value), do: :integer
  defp shape(value) when is_float(value), do: :float

  defp shape(text) do
    Enum.find_value(
      [
        date: @date,
        time: @time,
        datetime: "#{@date}T#{@time}",
        uuid: "[0-9a-f-]{36}",
        decimal: "\\d+\\.\\d+"
      ],
      :text,
      fn {kind, form} -> text =~ ~r/\A#{form}\z/ && kind end
    )
  end
end
