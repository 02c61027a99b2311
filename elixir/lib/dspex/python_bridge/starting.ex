defmodule DSPex.PythonBridge.Starting do
  @moduledoc """
  Prepares a worker for its first call: sends `hello`, registers the functions, and runs the setup.

  This work runs in a separate process, as an ordinary caller, while the owner of the port routes
  its calls. The owner gets `:start_timeout` or the process's `:DOWN`, and `error/2` turns what
  went wrong into an error that says what to do.
  """

  require Logger

  alias DSPex.PythonBridge.{Call, Connection, Error, Exits, Functions, Text, Transport}

  # How long the error that a worker has sent just before its end may take to be decoded, ms.
  @decoding 200

  @enforce_keys [:pid, :monitor]
  defstruct @enforce_keys

  @type t :: %__MODULE__{pid: pid(), monitor: reference()}

  @typedoc """
  Why a worker did not start: it could not be opened, it sent a frame that is no reply to `hello`,
  missed heartbeats, the timeout, the exit reason of the process that prepares it, or the end of
  its transport.
  """
  @type cause ::
          {:open, String.t()}
          | {:refused, binary()}
          | {:heartbeats, pos_integer()}
          | :timeout
          | {:prepared, {:error, Error.t()} | {:raised, String.t()}}
          | {:transport, Transport.cause()}
          | term()

  @doc """
  Starts the process that prepares the worker.

  The caller receives `{:DOWN, monitor, :process, pid, {:prepared, {:ok, hello}}}` with the reply
  to `hello` when the worker may take calls, another `:DOWN` when the preparation failed, and
  `:start_timeout` when the time is over, even if the start has succeeded since.
  """
  @spec begin(Connection.t(), keyword()) :: t()
  def begin(connection, options) do
    {pid, monitor} = spawn_monitor(fn -> exit({:prepared, prepare(connection, options)}) end)
    Process.send_after(self(), :start_timeout, options[:start_timeout] + options[:setup_timeout])
    %__MODULE__{pid: pid, monitor: monitor}
  end

  @doc "Stops the preparation, if it still runs."
  @spec stop(t()) :: true
  def stop(starting), do: Process.exit(starting.pid, :kill)

  @doc """
  Returns the cause that explains more than the given one: if the transport has ended, the error
  that the worker has sent before, as a server with too many workers does.
  """
  @spec last_word(t(), Connection.t(), cause()) :: cause()
  def last_word(%{monitor: monitor}, connection, {:transport, _} = cause) do
    # With an open call, the worker has not answered.
    timeout = if Connection.open_calls(connection.table) == 0, do: @decoding, else: 0

    receive do
      {:DOWN, ^monitor, _, _, {:prepared, {:error, %{code: code}}} = answer}
      when code != :worker_crashed ->
        answer
    after
      timeout -> cause
    end
  end

  def last_word(_starting, _connection, cause), do: cause

  defp prepare(connection, options) do
    with {:ok, hello} <- hello(connection, options),
         connection = Connection.limited(connection, hello),
         {:ok, _} <- Functions.register_tools(connection, options[:tools], []),
         declared = Keyword.take(options, Functions.options()),
         :ok <- Functions.register(connection, declared, []),
         :ok <- set_up(options[:setup], connection) do
      {:ok, hello}
    end
  end

  defp hello(connection, options) do
    offers = %{tools: true, logs: options[:logs], buffers: connection.format == :etf}
    timeout = options[:start_timeout]

    with {:error, %{code: :deadline_exceeded} = error} <-
           Call.run(connection, "hello", %{offers: offers}, timeout) do
      {:error, %{error | message: "it did not answer within #{timeout} ms (:start_timeout)"}}
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
  Returns the error for a worker that did not start. `worker` is nil if it could not be opened.
  """
  @spec error(cause(), Transport.worker() | nil) :: Error.t()
  def error(cause, worker) do
    {reason, details} = reason(cause, worker)
    error = Error.new(:worker_crashed, "the worker did not start: #{reason}", details)
    %{error | category: :initialization, severity: :critical, recovery: :immediate_retry}
  end

  defp reason({:open, line}, _worker), do: {line, %{}}
  defp reason({:prepared, {:error, error}}, _worker), do: {error.message, error.details}
  defp reason({:prepared, {:raised, line}}, _worker), do: {"its setup failed: #{line}", %{}}

  defp reason({:refused, frame}, _worker) do
    shown = Text.line(binary_part(frame, 0, min(byte_size(frame), 200)))
    {"it refuses the format, or is not a worker: #{shown}", %{}}
  end

  defp reason({:transport, cause}, %module{} = worker) do
    module.reason(worker, :starting, cause)
  end

  defp reason({:heartbeats, missed}, _), do: {"it did not answer #{missed} heartbeats", %{}}
  defp reason(:timeout, _), do: {"its setup did not end in time (option :setup_timeout)", %{}}
  defp reason(exit, _worker), do: {"its setup ended: #{Exits.line(:exit, exit, [])}", %{}}
end
