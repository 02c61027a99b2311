defmodule OnNode do
  @moduledoc "What tests of a cluster let nodes do. It is in a module of its own because nodes load it from a file."

  alias DSPex.PythonBridge.{Error, SessionPoolV2}

  @doc "Starts a pool in a process of its own."
  def start_pool(options) do
    starter = self()

    runner =
      spawn(fn ->
        Process.flag(:trap_exit, true)
        result = SessionPoolV2.start_link(options)
        send(starter, {self(), result})
        receive do: ({:EXIT, _, _} -> :ok)
      end)

    receive do
      {^runner, {:ok, _}} -> :ok
      {^runner, {:error, reason}} -> {:error, reason}
    end
  end

  @doc "Starts a process that runs code as a terminal does."
  def start_shell do
    shell =
      spawn(fn ->
        {:ok, output} = StringIO.open("")
        Process.group_leader(self(), output)
        shell([])
      end)

    Process.register(shell, __MODULE__)
    :ok
  end

  defp shell(binding) do
    receive do
      {:type, code, asker} ->
        {value, binding} = Code.eval_string(code, binding)
        send(asker, {__MODULE__, value})
        shell(binding)
    end
  end

  @doc "Runs code in that process. Returns its value, or why the process has ended."
  def type(code) do
    shell = Process.monitor(__MODULE__)
    send(__MODULE__, {:type, code, self()})

    receive do
      {__MODULE__, value} -> {:ok, value}
      {:DOWN, ^shell, _, _, reason} -> {:error, reason}
    end
  end

  @doc "A tool that tells on which node it runs."
  def where(_args), do: to_string(node())

  @doc "Returns an anonymous function of a module that no other node has."
  def anonymous do
    [{module, _}] =
      Code.compile_string("defmodule OnlyHere do\n  def function, do: fn _ -> :here end\nend")

    module.function()
  end

  @doc "Starts a process that makes a call."
  def spawn_call(session, command, pool \\ Clusters.pool()) do
    options = [pool_name: pool, timeout: 60_000]
    spawn(fn -> SessionPoolV2.execute_in_session(session, command, %{}, options) end)
  end

  @doc """
  Makes calls of sessions of all nodes in a process that traps exits, most of which fail or end early.
  Returns what is left in it: its messages and its monitors.
  """
  def remains(sessions) do
    fn ->
      Process.flag(:trap_exit, true)
      Enum.each(sessions, &calls/1)
      SessionPoolV2.health_check(Clusters.pool())
      SessionPoolV2.get_stats(Clusters.pool())
      Process.info(self(), [:messages, :monitors, :links])
    end
    |> Task.async()
    |> Task.await(30_000)
    |> Keyword.update!(:links, &length/1)
  end

  defp calls(session) do
    pool = [pool_name: Clusters.pool()]
    blob = %{"blob" => :binary.copy("x", 1_000_000)}

    for {command, args, timeout} <- [
          {:ping, %{}, 5_000},
          {:ping, %{}, 0},
          {:wait, %{}, 1},
          {:wait, %{}, 20},
          {:echo, blob, 1},
          {:echo, blob, 5_000},
          {:append, %{entry: 1}, :infinity}
        ] do
      SessionPoolV2.execute_in_session(session, command, args, [timeout: timeout] ++ pool)
    end

    numbers(session, 1_000, take: 3)
    numbers(session, 1_000, every: 0.01, timeout: 20)
  end

  @doc "Starts a process that reads a stream, as `numbers/3` does."
  def spawn_reader(session, count, options), do: spawn(fn -> numbers(session, count, options) end)

  @doc """
  Reads a stream of the command `events`. Returns the numbers of the events, and the code of the error with
  which the stream ended, or `nil`.

  Options: `:size` (bytes of each), `:every` (s between them), `:pause` (ms that the consumer takes for each),
  `:take` (how many it reads), `:timeout` (ms).
  """
  def numbers(session, count, options \\ []) do
    args = %{count: count, size: options[:size] || 1, every: options[:every] || 0.0}
    call = [session_id: session, pool_name: Clusters.pool(), timeout: options[:timeout] || 30_000]

    numbers =
      :events |> SessionPoolV2.stream(args, call) |> Stream.flat_map(&number(&1, options[:pause]))

    Process.put(:numbers, [])

    error =
      each(
        Stream.take(numbers, options[:take] || count),
        &Process.put(:numbers, [&1 | Process.get(:numbers)])
      )

    {Enum.reverse(Process.get(:numbers)), error}
  end

  defp each(stream, function) do
    Enum.each(stream, function)
    nil
  rescue
    error in Error -> error.code
  end

  defp number({:chunk, %{"number" => number}}, pause) do
    if pause, do: Process.sleep(pause)
    [number]
  end

  defp number(_other, _pause), do: []

  @doc "Makes calls with so many bytes in both directions, one after the other. Returns what was wrong."
  def large(session, bytes, count) do
    args = %{"blob" => :binary.copy(:rand.bytes(1000), div(bytes, 1000))}
    options = [pool_name: Clusters.pool(), timeout: 60_000]

    Enum.flat_map(1..count, fn _ ->
      case SessionPoolV2.execute_in_session(session, :echo, args, options) do
        {:ok, ^args} -> []
        {:ok, _} -> [:another_result]
        {:error, error} -> [error]
      end
    end)
  end
end
