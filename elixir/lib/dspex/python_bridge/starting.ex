defmodule DSPex.PythonBridge.Starting do
  @moduledoc """
  Prepares a worker for its first call: sends `hello`, registers the tools, and runs the setup.

  This work runs in a separate process, as an ordinary caller, while the owner of the port routes
  its calls. The owner gets `:start_timeout` or the process's `:DOWN`, and `error/2` turns what
  went wrong into an error that says what to do.
  """

  require Logger

  alias DSPex.PythonBridge.{Call, Connection, Error, Exits, Python, Text, Tools}

  @enforce_keys [:pid, :monitor, :python]
  defstruct @enforce_keys

  @type t :: %__MODULE__{pid: pid(), monitor: reference(), python: Path.t()}

  @typedoc """
  Why a worker did not start: no usable interpreter, a reply that refuses the format, the end of
  the worker's port, missed heartbeats, the timeout, or the exit reason of the process that
  prepares it.
  """
  @type cause ::
          {:python, String.t()}
          | {:refused, binary()}
          | {:exit_status, non_neg_integer()}
          | {:port, term()}
          | {:heartbeats, pos_integer()}
          | :timeout
          | {:prepared, {:error, Error.t()} | {:raised, String.t()}}
          | term()

  @doc """
  Starts the process that prepares the worker.

  The caller receives `{:DOWN, monitor, :process, pid, {:prepared, :ok}}` when the worker may take
  calls, another `:DOWN` when the preparation failed, and `:start_timeout` when the time is over,
  even if the start has succeeded since.
  """
  @spec begin(Connection.t(), Path.t(), keyword()) :: t()
  def begin(connection, python, options) do
    {pid, monitor} = spawn_monitor(fn -> exit({:prepared, prepare(connection, options)}) end)
    Process.send_after(self(), :start_timeout, options[:start_timeout] + options[:setup_timeout])
    %__MODULE__{pid: pid, monitor: monitor, python: python}
  end

  @doc "Stops the preparation, if it still runs."
  @spec stop(t()) :: true
  def stop(starting), do: Process.exit(starting.pid, :kill)

  defp prepare(connection, options) do
    offers = %{tools: true, logs: options[:logs], buffers: connection.format == :etf}

    with {:ok, _} <- Call.run(connection, "hello", %{offers: offers}, options[:start_timeout]),
         {:ok, _} <- Tools.register(connection, options[:tools], []) do
      set_up(options[:setup], connection)
    end
  end

  defp set_up(setup, connection) do
    Connection.put_own(connection)

    with {:error, reason} <- setup.(connection) do
      Logger.warning(
        "#{inspect(connection.name)}: the setup returned an error, and the worker starts " <>
          "without what failed: #{Exits.line(:error, reason, [])}. To restart the worker " <>
          "instead, raise the error, for example with Bridge.call!",
        bridge: connection.name
      )
    end

    :ok
  catch
    kind, reason -> {:raised, Exits.line(kind, reason, __STACKTRACE__)}
  end

  @doc """
  Returns the error for a worker that did not start.

  If the worker has ended, runs the interpreter to see what is missing, which takes some hundred
  milliseconds.
  """
  @spec error(cause(), Path.t() | nil) :: Error.t()
  def error(cause, python) do
    {reason, details} = reason(cause, python)
    error = Error.new(:worker_crashed, "the worker did not start: #{reason}", details)
    %{error | category: :initialization, severity: :critical, recovery: :immediate_retry}
  end

  defp reason({:python, line}, _python), do: {line, %{}}
  defp reason({:prepared, {:error, error}}, _python), do: {error.message, error.details}
  defp reason({:prepared, {:raised, line}}, _python), do: {"its setup failed: #{line}", %{}}

  defp reason({:refused, frame}, _python) do
    {"it refuses the format: #{Text.line(binary_part(frame, 0, min(byte_size(frame), 200)))}",
     %{}}
  end

  defp reason({:exit_status, status}, python),
    do: ended(status, %{"exit_status" => status}, python)

  defp reason({:port, reason}, python), do: ended(reason, %{}, python)
  defp reason({:heartbeats, missed}, _), do: {"it did not answer #{missed} heartbeats", %{}}
  defp reason(:timeout, _), do: {"its setup did not end in time (option :setup_timeout)", %{}}
  defp reason(exit, _python), do: {"its setup ended: #{Exits.line(:exit, exit, [])}", %{}}

  defp ended(status, details, python) do
    case Python.check(python) do
      {:error, reason} -> {reason, details}
      {:ok, _, _} -> {"it ended with status #{inspect(status)}", details}
    end
  end
end
