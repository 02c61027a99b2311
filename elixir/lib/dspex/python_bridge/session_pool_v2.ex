defmodule DSPex.PythonBridge.SessionPoolV2 do
  @moduledoc """
  A pool of workers: a supervisor that starts and replaces them, and the functions to call them.

      children = [{DSPex.PythonBridge.SessionPoolV2, workers: 4}]
      Supervisor.start_link(children, strategy: :one_for_one)

      {:ok, %{"status" => "ok"}} = SessionPoolV2.execute_anonymous(:ping)
      {:ok, result} = SessionPoolV2.execute_in_session("ann", :execute_program, args, 5_000)

  The workers are forked from a template, a Python process that has loaded the adapter, so another
  worker takes some milliseconds and some MiB. Any number of processes may call at the same time: each
  chooses a worker and talks to it itself, and no other process is in the way.

  ## Sessions

  The first call of a session chooses a worker, which has the session from then on. What is set up
  without a session (`configure_lm`, `create_program`, tools, …) exists in all workers: it is carried out
  in each, and a new worker gets all of it before its first call. More than 10 000 such changes, without
  those that later ones replace, return `:quota_exceeded`. All changes of an adapter's own commands count.

  When a worker ends, its durable sessions go on in another one (flag `--store`, see
  docs/protocol.md). The next call of any other session returns `:session_lost` once, unless it creates or
  ends the session; the call after that begins a new session. With `affinity: :hint` it begins a new session at once.

  With `isolate: :session` each session has a worker of its own: no other session is in its process,
  and its end affects no other.

  ## When a worker ends

  Calls that it had not got go to another worker. Those that it had are repeated by another worker if
  their commands are idempotent, within the same deadline, as
  `DSPex.PythonBridge.PoolErrorHandler` decides; a budget limits how many. All others return
  `:worker_crashed`, with the exit status or signal and the last lines of the worker's stderr. Each
  call gets one reply.

  Another worker is started at once. If workers end soon after their start again and again, the delay
  grows up to 5 s. A worker that leaves five calls without any reply within 30 s is ejected: it gets no calls
  except those of its sessions until it answers a `ping`, after 5 s, then 10 s, …; after three failed
  ones it is replaced.

  ## When a provider of models fails

  After five failures in a row of runs that use one provider (by the last `configure_lm` of the
  session, or without one), further runs return `:circuit_open` for 60 s; see
  `DSPex.PythonBridge.CircuitBreaker`.

  ## Several nodes

  With `cluster: true` the pools of the same name on connected nodes act as one pool. A session belongs to
  one node, and its calls run there, whichever node makes them; when the node is lost, a durable session
  goes on on another one, and any other is lost as with its worker. What is set up without a session exists
  on all nodes. A call that was on a node that is lost is repeated or returns `:worker_crashed`, as after
  the end of a worker. `renew/1` and `stop/1` are for the pool of this node. See
  [Several machines](cluster.md).

  ## Load

  Each worker runs `:threads` calls at once and lets `:queue` more wait. While all threads are busy the
  pool grows up to the greatest number of workers; when all queues are full, calls return `:overloaded`
  with `"retry_after"`.
  """

  use Supervisor

  alias DSPex.PythonBridge.{
    CircuitBreaker,
    Cluster,
    Error,
    Functions,
    OpenCall,
    Pool,
    RetryBudget
  }

  alias DSPex.PythonBridge.Cluster.{Member, Overview, Routing, Settings, Shared}

  alias DSPex.PythonBridge.Pool.{
    Journal,
    Options,
    Providers,
    Request,
    Server,
    Sessions,
    Template
  }

  # The default timeout of a call, ms.
  @timeout 30_000

  @type command :: DSPex.PythonBridge.Bridge.command()
  @type args :: DSPex.PythonBridge.Bridge.args()
  @type result :: {:ok, term()} | {:ok, term(), timing :: map()} | {:error, Error.t()}

  @doc """
  Returns the child specification of a pool. As for a bridge, a first worker that does not start is not
  fatal under a supervisor, unless the option `retry_start: false` is given.
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(options) do
    options = DSPex.PythonBridge.Options.of_child!(options)

    %{
      id: Keyword.get(options, :name, __MODULE__),
      start: {__MODULE__, :start_link, [options]},
      type: :supervisor,
      shutdown: :infinity
    }
  end

  @doc """
  Starts a pool and waits until its first worker takes calls.

  ## Options

  Those of `DSPex.PythonBridge.Bridge.start_link/1` except the `:backoff_…` and `:healthy_after`, which
  have no effect, and

    * `:name` - the name of the pool, default `DSPex.PythonBridge.SessionPoolV2`
    * `:workers` - how many workers, or a range such as `2..8`; default: as many as schedulers
    * `:connect` - the address of a template that runs already, for instance
      `"unix:/run/bridge.sock"`; without it the pool starts its own
    * `:fork` - `false` starts each worker as a process of its own, on a port. The default is `true`
      where there are Unix sockets
    * `:affinity` - `:strict` (default) or `:hint`: whether a session needs the worker that it had
    * `:isolate` - `:session` gives each session a worker of its own; `:workers` then counts those for
      calls without a session. `:max_sessions` (1 000) limits their number, and one that was not used
      for `:session_idle` ms (300 000) ends with its session
    * `:queue` - how many calls may wait in each worker, default 4096
    * `:idle_timeout` - how long a worker beyond the least number may be idle, in ms, default 30 000
    * `:max_requests`, `:max_age` (ms), `:max_rss` (bytes) - replace a worker that has reached the limit,
      once another one has taken its place. The first two vary by 10 %. Default: no limit
    * `:drain_timeout` - how long a worker that is being replaced keeps its sessions, in ms, default
      60 000
    * `:cluster` - `true`: acts as one pool with those of the same name on connected nodes. Or
      `[heartbeat: ms]`, 500 by default; a node of which three are missing gets no calls
    * `:sweep_interval` - how often sessions that have expired are removed from the table, in ms, default
      30 000

  Returns `{:error, {:shutdown, %DSPex.PythonBridge.Error{}}}` if the first worker does not start.
  Raises `ArgumentError` for invalid options.
  """
  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(options \\ []) do
    {own, worker} = Options.checked!(options)

    with {:ok, supervisor} <-
           Supervisor.start_link(__MODULE__, fn -> {own, worker} end, name: own[:name]) do
      case Server.first(Pool.get(own[:name]).server) do
        :ok ->
          if own[:cluster], do: Member.await(own[:name])
          {:ok, supervisor}

        {:error, error} ->
          if own[:retry_start] do
            {:ok, supervisor}
          else
            Process.unlink(supervisor)
            Supervisor.stop(supervisor, :shutdown)
            {:error, {:shutdown, error}}
          end
      end
    end
  end

  # The tables belong to the supervisor, so they outlive the server.
  @impl true
  def init(hidden) do
    {own, worker} = hidden.()
    name = own[:name]

    [template, journal, slots] =
      for part <- ~w(Template Journal Slots), do: Module.concat(name, part)

    template = if forks?(own, worker), do: template
    threads = worker[:threads] || 64

    pool = %Pool{
      name: name,
      server: nil,
      journal: journal,
      sessions: Sessions.new_table(),
      functions: Functions.new_table(),
      slots: {},
      commands: %{},
      default_session: nil,
      threads: threads,
      limit: threads + own[:queue],
      affinity: own[:affinity],
      isolate: own[:isolate],
      stored:
        worker[:connect] != nil or Enum.any?(worker[:args], &String.starts_with?(&1, "--store")),
      budget: RetryBudget.new(),
      breaker: CircuitBreaker.new(name: name),
      providers: Providers.new_table(),
      wants_more: :atomics.new(1, []),
      cluster: Cluster.new(own[:cluster], Settings.of(own, worker))
    }

    context = %{
      pool: pool,
      own: own,
      options: fn -> worker end,
      supervisor: slots,
      template: template
    }

    if pool.cluster, do: Functions.look_elsewhere(pool.functions, &Shared.find(name, &1, &2, &3))

    children = [
      template && {Template, {template, name, fn -> Keyword.merge(worker, own) end}},
      {Journal, pool},
      {DynamicSupervisor, name: slots, strategy: :one_for_one},
      {Server, context},
      pool.cluster && {Cluster, pool}
    ]

    children |> Enum.filter(& &1) |> Supervisor.init(strategy: :rest_for_one)
  end

  defp forks?(own, worker), do: worker[:connect] == nil and own[:fork] and Template.available?()

  @doc """
  Calls a command in a session, and waits for the reply.

  The first call of a session chooses the worker that has the session from then on.

  ## Options

  A timeout in ms, or a keyword list:

    * `:pool_name` - the pool, default `DSPex.PythonBridge.SessionPoolV2`
    * `:timeout`, `:timing`, `:traceparent` - as for `DSPex.PythonBridge.Bridge.call/3`
    * `:idempotent` - `true` if the call may be repeated after the worker has ended while it had the
      call. Commands that `describe` calls idempotent always are

  Every failure is an `{:error, %DSPex.PythonBridge.Error{}}`; the call never exits.
  """
  @spec execute_in_session(String.t(), command(), args(), Request.options()) :: result()
  def execute_in_session(session_id, command, args \\ %{}, options \\ @timeout) do
    Routing.run(session_id, command, args, options)
  end

  @doc """
  Calls a command without a session, and waits for the reply; otherwise like `execute_in_session/4`.

  A command that changes what all sessions see (`configure_lm`, `create_program`, …) is carried out in
  all workers; any other one in a worker with little load. So the answer to `get_stats` or
  `list_sessions` is about one worker; see `get_stats/2` and `get_pool_status/1` for the pool.
  """
  @spec execute_anonymous(command(), args(), Request.options()) :: result()
  def execute_anonymous(command, args \\ %{}, options \\ @timeout) do
    Routing.run(nil, command, args, options)
  end

  @doc """
  Returns a stream of the events of a call and of its result, as
  `DSPex.PythonBridge.Bridge.stream/3` does. The options are those of `execute_in_session/4` and
  `:session_id`. A worker that ends during the stream ends it with an error.
  """
  @spec stream(command(), args(), Request.options()) :: Enumerable.t()
  def stream(command, args, options \\ @timeout), do: Routing.stream(command, args, options)

  @doc """
  Registers Elixir functions that programs of type `react` may call; see `DSPex.Tool`.

  With the option `:session_id` they belong to that session, otherwise to all workers, also to those
  that start later. Other options are `:pool_name` and `:timeout`.
  """
  @spec register_tools([DSPex.Tool.t()], keyword()) :: result()
  def register_tools(tools, options \\ []) do
    declared = Functions.declared!(tools)
    {session_id, options} = Keyword.pop(options, :session_id)
    result = Routing.run(session_id, "register_tools", %{tools: declared}, options)

    # The worker reports the session, whose name depends on the worker's mode if none was given.
    with {:ok, %{"session_id" => session_id}} <- result,
         {name, _, _} = Request.own(options),
         %Pool{} = pool <- Pool.get(name),
         do: Shared.register(pool, session_id, Functions.of_tools(tools))

    result
  end

  @doc """
  Registers functions of the application that programs call by a name, as
  `DSPex.PythonBridge.Bridge.register/2` does.

  With the option `:session_id` they belong to that session, otherwise to all workers, also to those
  that start later. Another option is `:pool_name`.
  """
  @spec register(Functions.functions(), keyword()) :: :ok | {:error, Error.t()}
  def register(functions, options \\ []) do
    checked = Functions.checked!(functions)
    {name, _, options} = Request.own(options)
    {_timeout, envelope} = OpenCall.envelope(options)
    {_, session_id} = List.keyfind(envelope, "session_id", 0, {nil, nil})
    Shared.register(Pool.fetch!(name), Request.text(session_id), checked)
  rescue
    error in Error -> {:error, error}
  end

  @doc """
  Ends a session: its state, its tools, its place in the pool, and its worker, if it has its own.
  A durable session is also removed from the store. It is fine if there is no such session.
  """
  @spec end_session(String.t(), Request.options()) :: :ok | {:error, Error.t()}
  def end_session(session_id, options \\ @timeout) do
    with {:ok, _} <- Routing.run(session_id, "cleanup_session", %{}, options), do: :ok
  end

  @doc """
  Returns what the worker knows about a session (`get_session`), its `"slot"`, and the `"node"` of its
  worker, an atom, without creating the session.
  """
  @spec get_session_info(String.t(), Request.options()) :: {:ok, map()} | {:error, Error.t()}
  def get_session_info(session_id, options \\ @timeout) do
    Routing.session_info(session_id, options)
  end

  @doc """
  Returns the state of a pool, without a request to its workers.

    * `:status` - `:running` if a worker takes calls, `:starting`, or `:not_running`
    * `:slots` - a list of maps: `:slot` (a number that is not used again), `:state` (see
      `DSPex.PythonBridge.Pool.Slot`), `:session` if the worker belongs to one, `:worker_pid`,
      `:uptime` (ms), `:open_calls`, `:requests`, `:sessions`
    * `:sessions`, `:open_calls` - of all slots
    * `:last_error` - why a worker has ended or did not start; `nil` once another one has started
    * `:stats` - as of `DSPex.PythonBridge.Bridge.get_status/1`, of all workers since the first start
    * `:nodes` - with `cluster: true`: the nodes that get calls, sorted
    * `:cluster` - with `cluster: true`: by node, a map of `:state` (`:live`, `:not_ready` or `:hung`),
      `:workers` that take calls, `:sessions` and `:open_calls`, as the node has told last

  In a cluster all other keys are about the pool of this node.
  """
  @spec get_pool_status(atom()) :: map()
  def get_pool_status(name \\ __MODULE__), do: Overview.status(name)

  @doc """
  Asks every worker whether it answers.

  Returns `{:ok, %{status: :healthy | :degraded, healthy: slots, failed: %{slot => error}}}`, or an error
  if no worker answers. In a cluster, the slots are those of this node, `:nodes` has the result of each
  node, and the status is that of all together.
  """
  @spec health_check(atom(), timeout()) :: {:ok, map()} | {:error, Error.t()}
  def health_check(name \\ __MODULE__, timeout \\ 5_000) do
    Overview.health(Pool.fetch!(name), timeout)
  rescue
    error in Error -> {:error, error}
  end

  @doc """
  Returns the statistics of all workers together: the keys of `get_stats`, with the calls, errors, bytes
  and latencies of each command from merged histograms, and `"workers"`, a list of each one's own
  figures. In a cluster they are those of the workers of all nodes that answer.
  """
  @spec get_stats(atom(), timeout()) :: {:ok, map()} | {:error, Error.t()}
  def get_stats(name \\ __MODULE__, timeout \\ 5_000) do
    Overview.stats(Pool.fetch!(name), timeout)
  rescue
    error in Error -> {:error, error}
  end

  @doc """
  Replaces all workers, for instance after new Python code was installed, without a failed call.

  Another template is started, then each worker gets a successor that it has forked. The old one takes no
  new sessions and ends when its sessions have ended, or after `:drain_timeout`.
  """
  @spec renew(atom()) :: :ok | {:error, Error.t()}
  def renew(name \\ __MODULE__) do
    Server.renew(Pool.fetch!(name).server)
  rescue
    error in Error -> {:error, error}
  end

  @doc "Stops a pool with its workers. Returns `:ok` for a pool that does not run."
  @spec stop(atom()) :: :ok
  def stop(name \\ __MODULE__) do
    Supervisor.stop(name)
  catch
    :exit, reason when reason == :noproc or elem(reason, 0) == :noproc -> :ok
  end
end
