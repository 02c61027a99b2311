defmodule DSPex.PythonBridge.Pool.Template do
  @moduledoc """
  Runs `python -m bridge serve`, a process that has loaded the adapter and gives a forked worker to
  each connection to its socket, and sends the pool's server the address of the socket.

  The socket is in a new folder that only this user can enter; both are removed at the end. The
  template is not in the way of a call: when it ends, its workers go on, and another template is started
  on another socket, at once the first time, then after a delay that grows up to 5 s.

  A template reports how its workers have ended, which a socket cannot tell.
  """

  use GenServer
  require Logger

  alias DSPex.PythonBridge.{Connection, Error, Stderr, Telemetry, WorkerPort}
  alias DSPex.PythonBridge.Pool.Ends

  # How long an owner waits for the report of its worker's end, ms: a little longer than `Ends`.
  @end_timeout 200
  @first_delay 100
  @longest_delay 5_000
  # How long a template may take to end at the end of the pool, ms.
  @stop_timeout 1_000
  @spare 16
  # Bytes of the path of a socket.
  @longest_path 107

  # current: the template that gives workers, next: the one that takes its place, older: those whose
  # workers have not all ended. Each is a WorkerPort. address: `:starting`, or that of the current one's
  # socket.
  @enforce_keys [:pool, :options, :folder]
  defstruct @enforce_keys ++
              [
                :current,
                :next,
                :server,
                :started,
                address: :starting,
                older: [],
                number: 0,
                failures: 0,
                ends: %Ends{}
              ]

  @doc false
  @spec start_link({atom(), atom(), (() -> keyword())}) :: GenServer.on_start()
  def start_link({name, pool, options}) do
    GenServer.start_link(__MODULE__, {pool, options}, name: name)
  end

  @doc "Returns whether the system can start workers in this way."
  @spec available?() :: boolean()
  def available? do
    match?({:unix, _}, :os.type()) and
      match?({:ok, folder} when byte_size(folder) < @longest_path - 50, tmp())
  end

  defp tmp do
    {:ok, System.tmp_dir!()}
  rescue
    RuntimeError -> :error
  end

  @doc """
  Makes the calling process the one that gets `{:template, address}` for each change, where `address` is
  `:starting`, or that of a socket, and `{:template, {:failed, error}}`. Returns the address now.
  """
  @spec subscribe(GenServer.server()) :: :starting | String.t()
  def subscribe(template), do: GenServer.call(template, :subscribe, :infinity)

  @doc "Starts another template; the one before ends with its last worker."
  @spec renew(GenServer.server()) :: :ok
  def renew(template), do: GenServer.cast(template, :renew)

  @doc "Kills the template at an address, which does not give workers, and starts another one."
  @spec replace(GenServer.server(), String.t()) :: :ok
  def replace(template, address), do: GenServer.cast(template, {:replace, address})

  @doc "Adds to the error of a worker that has ended how it has ended, and its last lines on stderr."
  @spec explained(GenServer.server(), pos_integer() | nil, Error.t()) :: Error.t()
  def explained(_template, nil, error), do: error

  def explained(template, os_pid, error) do
    Ends.explained(error, GenServer.call(template, {:end_of, os_pid}, @end_timeout))
  catch
    :exit, _ -> error
  end

  # Starting

  @impl true
  def init({pool, options}) do
    Process.flag(:trap_exit, true)

    folder =
      Path.join(System.tmp_dir!(), "dspex-#{System.pid()}-#{Base.encode32(:rand.bytes(5))}")

    File.mkdir!(folder)
    File.chmod!(folder, 0o700)
    remove_at_the_end(folder)
    {:ok, start(%__MODULE__{pool: pool, options: options, folder: folder})}
  end

  # Also if this process or the BEAM is killed.
  defp remove_at_the_end(folder) do
    if shell = System.find_executable("sh") do
      script = ~S(while read -r line; do :; done; rm -rf -- "$1")
      Port.open({:spawn_executable, shell}, [:hide, args: ["-c", script, "sh", folder]])
    end
  end

  defp start(state) do
    case launch(state) do
      {:ok, port, state} -> %{state | current: port}
      {:error, line} -> not_started(state, Error.new(:worker_crashed, not_started(line)))
    end
  end

  # Each template has a socket of its own.
  defp launch(state) do
    number = state.number + 1
    path = Path.join(state.folder, "#{number}.sock")
    options = state.options.()

    with {:ok, port} <- WorkerPort.launch(options, arguments(path, options)) do
      {:ok, port, %{state | number: number, started: Connection.now()}}
    end
  end

  defp arguments(path, options) do
    ["serve", "--listen", "unix:" <> path, "--control", "etf"] ++
      ["--max-workers", to_string(most(options))] ++ WorkerPort.flags(options)
  end

  # Each worker of the pool and its successor, and those of sessions. The pool keeps the number itself;
  # this is a limit for what else connects, and leaves room for workers that are about to end.
  defp most(options) do
    sessions = if options[:isolate], do: options[:max_sessions], else: 0
    2 * (options[:workers].last + sessions) + @spare
  end

  @impl true
  def handle_call(:subscribe, {server, _}, state) do
    {:reply, state.address, %{state | server: server}}
  end

  def handle_call({:end_of, os_pid}, from, state) do
    {:noreply, %{state | ends: Ends.ask(state.ends, os_pid, from)}}
  end

  @impl true
  def handle_cast(:renew, %{current: %{}, next: nil, address: address} = state)
      when address != :starting do
    case launch(state) do
      {:ok, port, state} ->
        {:noreply, %{state | next: port}}

      {:error, line} ->
        Logger.error("#{inspect(state.pool)}: another template did not start: #{line}")
        {:noreply, state}
    end
  end

  # One is starting already.
  def handle_cast(:renew, state), do: {:noreply, state}

  def handle_cast({:replace, address}, %{current: %{}, address: address} = state) do
    WorkerPort.kill(state.current)
    {:noreply, state}
  end

  def handle_cast({:replace, _address_of_another}, state), do: {:noreply, state}

  # Messages of templates

  @impl true
  def handle_info({port, {:data, frame}}, state) when is_port(port) do
    message = :erlang.binary_to_term(frame, [:safe])
    {:noreply, received(message, port, state)}
  end

  def handle_info({port, {:exit_status, status}}, %{current: %{port: port} = ended} = state) do
    line = "the template ended with status #{status}"
    Logger.warning("#{inspect(state.pool)}: #{line}")
    report(state, :ended, %{status: status})
    {:noreply, failed(state, ended, status)}
  end

  def handle_info({port, {:exit_status, status}}, %{next: %{port: port}} = state) do
    Logger.error(
      "#{inspect(state.pool)}: another template ended with status #{status} at its start"
    )

    {:noreply, %{state | next: nil}}
  end

  def handle_info({port, {:exit_status, _}}, state) do
    {:noreply, %{state | older: Enum.reject(state.older, &(&1.port == port))}}
  end

  def handle_info(:start, state), do: {:noreply, start(state)}

  def handle_info({:ends, message}, state) do
    {:noreply, %{state | ends: Ends.timeout(state.ends, message)}}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp received(%{"type" => "ready"} = ready, port, %{next: %{port: port} = next} = state) do
    stop(state.current.port)
    state = %{state | current: next, next: nil, older: [state.current | state.older]}
    received(ready, port, state)
  end

  defp received(
         %{"type" => "ready", "listen" => address} = ready,
         port,
         %{current: %{port: port}} = state
       ) do
    report(state, :ready, %{forks: ready["forks"]})
    tell(state, address)
    %{state | address: address, failures: 0}
  end

  defp received(%{"type" => "worker_exited", "pid" => os_pid} = report, _port, state) do
    %{state | ends: Ends.reported(state.ends, os_pid, report)}
  end

  defp received(_message, _port, state), do: state

  # It may have ended a moment ago.
  defp stop(port) do
    Port.command(port, :erlang.term_to_binary(%{"type" => "stop"}))
  rescue
    ArgumentError -> false
  end

  # A template that has given workers is followed by another at once.
  defp failed(%{address: :starting} = state, ended, status) do
    {reason, details} = WorkerPort.reason(ended, :starting, {:exit_status, status})
    error = Error.new(:worker_crashed, not_started(reason), details)
    not_started(state, Stderr.explained(error, ended.stderr))
  end

  # The one that was to take its place does so now.
  defp failed(%{next: %{} = next} = state, _ended, _status) do
    tell(state, :starting)
    %{state | current: next, next: nil, address: :starting}
  end

  defp failed(state, _ended, _status) do
    tell(state, :starting)
    start(%{state | current: nil, address: :starting})
  end

  defp not_started(reason), do: "the template did not start: #{reason}"

  defp not_started(state, error) do
    error = %{error | category: :initialization, severity: :critical, recovery: :immediate_retry}
    Logger.error("#{inspect(state.pool)}: #{error.message}")
    tell(state, {:failed, error})
    delay = @first_delay * Integer.pow(2, min(state.failures, 16))
    Process.send_after(self(), :start, min(delay, @longest_delay))
    %{state | current: nil, failures: state.failures + 1}
  end

  defp tell(%{server: nil}, _address), do: :ok
  defp tell(%{server: server}, address), do: send(server, {:template, address})

  defp report(state, event, more) do
    metadata = Map.merge(%{pool: state.pool, event: event}, more)
    Telemetry.pool(:template, %{age: Connection.now() - state.started}, metadata)
  end

  # The slots have ended before, so that no template has a worker.
  @impl true
  def terminate(_reason, state) do
    templates = Enum.filter([state.current, state.next | state.older], & &1)
    for %{port: port} <- templates, do: close(port)
    for template <- templates, do: await_end(template, Connection.now() + @stop_timeout)
    File.rm_rf(state.folder)
  end

  # The end of its input ends a template.
  defp close(port) do
    Port.close(port)
  rescue
    ArgumentError -> true
  end

  defp await_end(%{os_pid: os_pid} = template, deadline) do
    cond do
      os_pid == nil or not File.exists?("/proc/#{os_pid}") -> :ok
      Connection.remaining(deadline) == 0 -> WorkerPort.kill(template)
      true -> Process.sleep(5) && await_end(template, deadline)
    end
  end

  @doc false
  @spec format_status(map()) :: map()
  def format_status(status), do: Map.replace(status, :message, :hidden)
end
