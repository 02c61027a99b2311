defmodule Workers do
  @moduledoc "Starts real workers for tests, and waits for conditions."

  import ExUnit.Callbacks, only: [on_exit: 1, start_supervised!: 1]
  alias DSPex.PythonBridge.Bridge

  @support Path.expand(__DIR__)

  @doc "Starts a supervised bridge for one test and returns its name."
  def start_bridge(options \\ []) do
    name = Module.concat(Bridge, "Test#{System.unique_integer([:positive])}")
    start_supervised!({Bridge, [name: name] ++ options(options)})
    name
  end

  @doc """
  Returns options for a worker that finds the adapters of `test/support`; the default is the echo
  adapter.

  With `transport: :socket`, or BRIDGE_TEST_TRANSPORT=socket, they are those of a connection to
  a server whose workers have these options.
  """
  def options(options \\ []) do
    {transport, options} = Keyword.pop(options, :transport, transport())

    options =
      Keyword.merge([adapter: "echo", format: format(), env: %{PYTHONPATH: @support}], options)

    if transport == :socket, do: connected(options), else: options
  end

  defp connected(options) do
    {of_worker, options} = Keyword.split(options, [:adapter, :args, :threads, :env])

    flags =
      for {key, name} <- [adapter: "--adapter", threads: "--threads"],
          value = of_worker[key],
          flag <- [name, to_string(value)],
          do: flag

    address = Servers.shared(flags ++ (of_worker[:args] || []), of_worker[:env])
    [connect: address] ++ options
  end

  @doc "Returns the transport of this test run: BRIDGE_TEST_TRANSPORT, or `:port`."
  def transport, do: "BRIDGE_TEST_TRANSPORT" |> System.get_env("port") |> String.to_atom()

  @doc "Returns the format of this test run: BRIDGE_TEST_FORMAT, or `:etf`."
  def format, do: "BRIDGE_TEST_FORMAT" |> System.get_env("etf") |> String.to_atom()

  @doc "Waits for a condition, at most `timeout` ms."
  def wait_until(condition, timeout \\ 5_000) do
    deadline = System.monotonic_time(:millisecond) + timeout
    wait(condition, deadline)
  end

  defp wait(condition, deadline) do
    cond do
      result = condition.() ->
        result

      System.monotonic_time(:millisecond) > deadline ->
        raise "it did not happen in time"

      true ->
        Process.sleep(5)
        wait(condition, deadline)
    end
  end

  @doc "Returns whether an operating system process exists and is not a zombie."
  def os_alive?(pid) do
    case File.read("/proc/#{pid}/stat") do
      {:ok, stat} -> not (stat =~ ~r/\) Z /)
      {:error, _} -> false
    end
  end

  @doc "Sends a signal to a worker."
  def signal(pid, name), do: {_, 0} = System.cmd("kill", ["-#{name}", "#{pid}"])

  @doc "Waits until a bridge is running, and returns the process id of its worker."
  def worker_pid(bridge) do
    wait_until(fn ->
      status = Bridge.get_status(bridge)
      status.status == :running && status.worker_pid
    end)
  end

  @doc """
  A Python that starts workers until `break/2`, and from then on ends with status 3 and a line on
  stderr, until `mend/1`.
  """
  def breakable_python do
    {:ok, python, _} = DSPex.PythonBridge.Python.find()
    path = Path.join(System.tmp_dir!(), "bridge-breakable-#{System.unique_integer([:positive])}")

    File.write!(path, """
    #!/bin/sh
    if [ -e "#{path}.broken" ]; then cat "#{path}.broken" >&2; exit 3; fi
    exec "#{python}" "$@"
    """)

    File.chmod!(path, 0o755)
    on_exit(fn -> Enum.each([path, path <> ".broken"], &File.rm/1) end)
    path
  end

  def break(python, line), do: File.write!(python <> ".broken", line <> "\n")
  def mend(python), do: File.rm!(python <> ".broken")
end
