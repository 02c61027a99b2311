defmodule Workers do
  @moduledoc "Real workers for tests, and waiting for what they do."

  import ExUnit.Callbacks, only: [on_exit: 1, start_supervised!: 1]
  alias DSPex.PythonBridge.Bridge

  @support Path.expand(__DIR__)

  @doc "A supervised bridge of the test's own; returns its name."
  def start_bridge(options \\ []) do
    name = Module.concat(Bridge, "Test#{System.unique_integer([:positive])}")
    start_supervised!({Bridge, [name: name] ++ options(options)})
    name
  end

  @doc "Options for a worker with an adapter of `test/support`; the echo adapter otherwise."
  def options(options \\ []) do
    Keyword.merge([adapter: "echo", format: format(), env: %{PYTHONPATH: @support}], options)
  end

  @doc "The format of the whole run: BRIDGE_TEST_FORMAT, or the default."
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

  @doc "Whether a process of the operating system is there and no zombie."
  def os_alive?(pid) do
    case File.read("/proc/#{pid}/stat") do
      {:ok, stat} -> not (stat =~ ~r/\) Z /)
      {:error, _} -> false
    end
  end

  @doc "Sends a signal to a worker."
  def signal(pid, name), do: {_, 0} = System.cmd("kill", ["-#{name}", "#{pid}"])

  @doc "The id of a bridge's worker, once it is running."
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
