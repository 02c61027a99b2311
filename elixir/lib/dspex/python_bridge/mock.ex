defmodule DSPex.PythonBridge.Mock do
  @moduledoc """
  A bridge without Python, for the tests of an application.

      setup do
        {:ok, bridge: start_supervised!(DSPex.PythonBridge.Mock)}
      end

      test "answers", %{bridge: bridge} do
        Mock.set_response(bridge, :answer, "Paris")
        assert MyApp.answer(bridge, "Where is the Louvre?") == "Paris"
      end

  It is a real bridge, or a real pool, whose workers are processes of this BEAM. They answer as a
  worker with DSPy does: programs have the outputs that their signatures declare, sessions are isolated,
  tools are called, streams have events, and what a worker refuses is refused with the same error. Only
  the values of outputs are made up: those that the test sets, or values of the declared types that
  depend on the inputs only.

  Tests with a mock each can run at the same time (`async: true`). A mock costs a millisecond and two
  file descriptors.

  The functions of this module take the mock's pid, which is also that of its bridge, or the name that
  was given to it.

  Batches, evaluations and optimizations run one row after the other, so that the values that a test sets
  are in their order. Metrics of the host are called; any other one says whether the outputs are those
  that an example expects. An optimization makes the first four examples of the trainset the program's
  demos. The vectors of an index are made up from the words of its texts.

  Not in a mock: durable sessions, quotas in bytes, the expiry of sessions, statistics of commands, files
  of programs, the history, models of the host, the checks of pipelines and of values by JSON Schemas and
  constraints, and JSON Schema beyond the types of a tool's arguments.
  """

  use GenServer

  alias DSPex.PythonBridge.{Bridge, Error, SessionPoolV2}
  alias DSPex.PythonBridge.Mock.{Frames, Programs, Script, State, Worker}

  # The longest path of a socket that all systems allow is a little longer; bytes.
  @longest_folder 80

  # Shorter than a supervisor waits for a mock; ms.
  @stop_timeout 4_500

  # Options about a Python process.
  @of_processes [:python, :adapter, :args, :env, :threads, :stuck_after]

  @type mock :: pid() | atom()

  @doc false
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(options) do
    %{
      id: Keyword.get(options, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [options]},
      shutdown: 5_000
    }
  end

  @doc """
  Starts a mock.

  ## Options

    * `:name` - the name of the bridge, by which the application calls it; default none
    * `:pool` - options of a `DSPex.PythonBridge.SessionPoolV2`, such as `[workers: 2]`: starts a pool
      instead of a bridge. It needs a `:name`, which is its `:pool_name`
    * `:programs` - the signatures of programs that an operator registers (`--program`), by their names
    * `:allow_code_execution` - `true` accepts programs of the types `rlm` and `flex`, as the flag does
    * `:quota` - how many programs a session may have, as with `--session-programs`

  All others are options of the bridge (`DSPex.PythonBridge.Bridge.start_link/1`), such as `:tools` and
  `:setup`. Those about a Python process have no effect.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(options \\ []) do
    name = if options[:name], do: [name: control(options[:name])], else: []
    GenServer.start_link(__MODULE__, fn -> options end, name)
  end

  @doc "Returns the address of the mock's workers, as the option `:connect` of a bridge has it."
  @spec address(mock()) :: String.t()
  def address(mock), do: GenServer.call(control(mock), :address)

  @doc """
  Sets the value of an output field in all further runs, or a function of the inputs that returns it.

  A run whose value is not of the field's type fails with an `:lm_error`. With the option `:program_id`
  it is for that program only.
  """
  @spec set_response(mock(), atom() | String.t(), term(), keyword()) :: :ok
  def set_response(mock, field, value, options \\ []),
    do: set_responses(mock, field, [value], options)

  @doc "Sets the values of an output field in the next runs, one for each run. The last one stays."
  @spec set_responses(mock(), atom() | String.t(), [term(), ...], keyword()) :: :ok
  def set_responses(mock, field, [_ | _] = values, options \\ []) do
    Script.set_outputs(script(mock), options[:program_id], to_string(field), values)
  end

  @doc """
  Sets which tools a run of type `react` calls, as `{name, arguments}`. By default it calls each of the
  program's tools once. The option is that of `set_response/4`.
  """
  @spec set_tool_calls(mock(), [{atom() | String.t(), map()}], keyword()) :: :ok
  def set_tool_calls(mock, calls, options \\ []) do
    calls = for {name, arguments} <- calls, do: {to_string(name), arguments}
    Script.set_tool_calls(script(mock), options[:program_id], calls)
  end

  @doc """
  Sets the result of a command, for instance of your own adapter, or a function of its args. Only the
  args are still checked.
  """
  @spec set_result(mock(), atom() | String.t(), term()) :: :ok
  def set_result(mock, command, result),
    do: Script.set_result(script(mock), to_string(command), result)

  @doc """
  Makes a command fail with an error until the error is `nil`, or so many `:times`.

  What a worker refuses is still refused for its own reason.
  """
  @spec inject_error(mock(), atom() | String.t(), Error.t() | nil, keyword()) :: :ok
  def inject_error(mock, command, error, options \\ []) do
    times = Keyword.get(options, :times, :infinity)
    Script.set_error(script(mock), to_string(command), error, times)
  end

  @doc """
  Makes calls of a command take so many ms, except for inline ones such as `ping`. Timeouts and
  cancelling end the wait.
  """
  @spec set_delay(mock(), atom() | String.t(), non_neg_integer()) :: :ok
  def set_delay(mock, command, ms), do: Script.set_delay(script(mock), to_string(command), ms)

  @doc """
  Returns the requests that have arrived, oldest first, each with `:command`, `:args` and `:session_id`:
  those of a command, or all except for those that a bridge sends by itself.
  """
  @spec calls(mock(), atom() | String.t() | nil) :: [Script.recorded()]
  def calls(mock, command \\ nil) do
    Script.requests(script(mock), if(command, do: to_string(command)))
  end

  @doc "Ends the workers as if they had crashed. The bridge gets new ones, as it would from Python."
  @spec crash(mock()) :: :ok
  def crash(mock), do: GenServer.call(control(mock), :crash)

  @doc "Forgets what was set and recorded. Programs and sessions stay."
  @spec reset(mock()) :: :ok
  def reset(mock), do: Script.clear(script(mock))

  defp script(mock), do: GenServer.call(control(mock), :script)

  defp control(mock) when is_pid(mock), do: mock
  defp control(name), do: Module.concat(name, Mock)

  @impl true
  def init(hidden) do
    Process.flag(:trap_exit, true)
    {own, options} = Keyword.split(hidden.(), [:pool, :programs, :quota, :allow_code_execution])
    options = Keyword.drop(options, @of_processes)
    folder = folder()
    path = Path.join(folder, "mock.sock")
    worker = new_worker(own)
    {:ok, script} = Script.start_link([])
    {:ok, workers} = DynamicSupervisor.start_link(strategy: :one_for_one)

    {:ok, listener} =
      :gen_tcp.listen(0, [:binary, packet: 4, active: false, backlog: 128, ifaddr: {:local, path}])

    spawn_link(fn -> accept(listener, workers, {script, worker}) end)
    state = %{folder: folder, address: "unix:" <> path, script: script, workers: workers}

    case start(own[:pool], Keyword.put(options, :connect, state.address)) do
      {:ok, bridge} ->
        {:ok, Map.put(state, :bridge, bridge)}

      {:error, reason} ->
        File.rm_rf(folder)
        {:stop, reason}
    end
  end

  defp new_worker(options) do
    registered =
      for {name, signature} <- options[:programs] || [],
          do: Programs.registered!(to_string(name), Frames.plain(signature))

    quota = if options[:quota], do: %{"programs" => options[:quota]}, else: %{}
    allows_code = options[:allow_code_execution] == true
    %State{quota: quota, registered: registered, allows_code: allows_code}
  end

  defp start(nil, options), do: options |> Keyword.put_new(:name, nil) |> Bridge.start_link()
  defp start(pool, options), do: pool |> Keyword.merge(options) |> SessionPoolV2.start_link()

  defp folder do
    name = "dspex-mock-#{System.pid()}-#{System.unique_integer([:positive])}"
    temporary = System.tmp_dir!()

    parent =
      if byte_size(temporary) + byte_size(name) > @longest_folder, do: "/tmp", else: temporary

    folder = Path.join(parent, name)
    File.mkdir!(folder)
    File.chmod!(folder, 0o700)
    folder
  end

  defp accept(listener, workers, {script, state} = of_workers) do
    case :gen_tcp.accept(listener) do
      {:ok, socket} ->
        {:ok, worker} = DynamicSupervisor.start_child(workers, {Worker, {socket, script, state}})
        :ok = :gen_tcp.controlling_process(socket, worker)
        :inet.setopts(socket, active: true)
        accept(listener, workers, of_workers)

      {:error, _closed} ->
        :ok
    end
  end

  @impl true
  def handle_call(:script, _from, state), do: {:reply, state.script, state}
  def handle_call(:address, _from, state), do: {:reply, state.address, state}

  def handle_call(:crash, _from, state) do
    for {_, worker, _, _} <- DynamicSupervisor.which_children(state.workers),
        do: DynamicSupervisor.terminate_child(state.workers, worker)

    {:reply, :ok, state}
  end

  # Questions to the bridge, whose pid is this one's for callers.
  def handle_call(question, from, state) do
    send(state.bridge, {:"$gen_call", from, question})
    {:noreply, state}
  end

  @impl true
  def handle_info({:EXIT, bridge, reason}, %{bridge: bridge} = state), do: {:stop, reason, state}
  def handle_info(_message, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, %{bridge: bridge} = state) do
    monitor = Process.monitor(bridge)
    Process.exit(bridge, :shutdown)

    receive do
      {:DOWN, ^monitor, _, _, _} -> :ok
    after
      @stop_timeout -> Process.exit(bridge, :kill)
    end

    File.rm_rf(state.folder)
  end
end
