defmodule DSPex.PythonBridge.Bridge do
  @moduledoc """
  A Python worker and the way to it.

      children = [{DSPex.PythonBridge.Bridge, []}]
      Supervisor.start_link(children, strategy: :one_for_one)

      {:ok, %{"status" => "ok"}} = DSPex.PythonBridge.Bridge.call(:ping)

  A bridge has one worker. The functions here take the name or pid of a bridge as their first
  argument; without one they mean the bridge that is called `DSPex.PythonBridge.Bridge`, which is
  the name that `start_link/1` gives. Any number of processes may call at the same time.

  ## When the worker ends

  Every open call gets `{:error, error}` with the code `:worker_crashed` at once. The bridge stays
  alive and starts another worker: at once the first time, then after a wait that doubles with each
  failure up to `:backoff_max`, and begins anew after a worker that ran for `:healthy_after`.
  Meanwhile its status is `:starting`. A call that comes then waits for the new worker, within its
  timeout; where that is over it gets the error of the last failure, with the last lines that the
  worker wrote to stderr. So it is with streams, casts, and calls that could not be sent any more.

  What the worker knew (programs, models, tools) is gone: the `:setup` and `:tools` options bring it
  back. A setup that fails is a start that failed.

  ## When a caller ends

  Its open calls are cancelled in the worker within about 100 ms, and nothing else happens.

  ## Names

  A bridge's name is also the name of its ETS table. A call through a name costs the caller one
  lookup; through a pid or `{:via, …}` it costs a message to the bridge more.
  """

  alias DSPex.PythonBridge.{
    Call,
    Connection,
    Error,
    EventStream,
    OpenCall,
    Options,
    Protocol,
    Server,
    Statistics,
    Tools
  }

  @type server :: GenServer.server() | Connection.t()
  @type command :: Protocol.command()
  @type args :: map() | keyword()
  @type result :: {:ok, term()} | {:ok, term(), timing :: map()} | {:error, Error.t()}

  # How long a pid is waited for that is starting or stopping, ms.
  @status_patience 1_000

  defguardp is_command(term) when is_atom(term) or is_binary(term)
  defguardp is_args(term) when is_map(term) or is_list(term)

  @doc """
  Returns the specification of a bridge for a supervisor.

  A first worker that does not start does not keep the application from starting: the bridge logs
  why and tries again, as after the end of a worker. `retry_start: false` makes it fail instead.
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(options) do
    %{
      id: Keyword.get(options, :name, __MODULE__),
      start:
        {__MODULE__, :start_link, [options |> hide_env() |> Keyword.put_new(:retry_start, true)]},
      shutdown: 5_000
    }
  end

  # Supervisors show the arguments of their children in reports; the environment holds keys.
  defp hide_env(options) do
    case options[:env] do
      nil -> options
      env when is_function(env, 0) -> options
      env -> Keyword.put(options, :env, fn -> env end)
    end
  end

  @doc """
  Starts a bridge, and returns when its worker has answered.

  ## Options

    * `:name` - default `DSPex.PythonBridge.Bridge`; `nil` for none
    * `:python` - the interpreter; where else it is looked for: `DSPex.PythonBridge.Python`
    * `:adapter` - the commands that the worker has: `"dspy"` (default), `"echo"`, `"module:attr"`
    * `:args` - further flags of `python -m bridge worker`
    * `:env` - environment variables for the worker, as a map or list of pairs, or a function that
      returns one; `nil` as a value removes a variable
    * `:threads` - calls that the worker runs at once, default 64
    * `:max_frame` - bytes of the longest request and reply, default 64 MiB
    * `:format` - `:etf` (default), or `:json` where there is a module for it
    * `:tools` - tools of the default session, see `register_tools/3`
    * `:setup` - a function that is called with the bridge when a worker has answered and before it
      takes the calls of others, after each start; raising makes that start fail, and an error
      that it returns is logged
    * `:logs` - whether the worker's logs go to `Logger` (default), or else to stderr
    * `:start_timeout` - ms until the worker must have answered, default 10 000
    * `:setup_timeout` - ms that `:setup` and the registering of `:tools` may take, default 60 000
    * `:heartbeat_interval` - ms between heartbeats, default 2 000; `false` for none. A worker that
      leaves three in a row unanswered is replaced
    * `:stuck_after` - ms without progress on any thread of a worker that has none free, after which
      it is replaced; default 300 000, `false` for never
    * `:backoff_min`, `:backoff_max` - ms before another start after the second failure in a row,
      and the most that it grows to; defaults 50 and 10 000. Each wait is shortened at random by up
      to half
    * `:healthy_after` - ms after which a worker that ends no longer counts as another failure in a
      row, default 5 000
    * `:retry_start` - whether a bridge whose first worker does not start stays alive and tries
      again; default `false` here, `true` under a supervisor (`child_spec/1`)
    * `:tool_timeout` - ms that a tool may take, default 300 000, or `:infinity`

  Returns `{:error, {:shutdown, %DSPex.PythonBridge.Error{}}}` where the first worker does not
  start; its message says what to do. Raises ArgumentError for options that make no sense.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(options \\ []), do: options |> Options.checked!() |> Server.start_link()

  @doc """
  Calls the default bridge without args.

      {:ok, %{"status" => "ok"}} = Bridge.call(:ping)
  """
  @spec call(command()) :: result()
  def call(command), do: Call.run(__MODULE__, command, %{}, 30_000)

  @doc """
  `call(command, args)` on the default bridge, or `call(server, command)`.
  """
  @spec call(command(), args()) :: result()
  @spec call(server(), command()) :: result()
  def call(command, args) when is_args(args), do: Call.run(__MODULE__, command, args, 30_000)
  def call(server, command), do: Call.run(server, command, %{}, 30_000)

  @doc """
  `call(command, args, timeout_or_options)` on the default bridge, or `call(server, command, args)`.
  """
  @spec call(command(), args(), OpenCall.options()) :: result()
  @spec call(server(), command(), args()) :: result()
  def call(server, command, args)
      when is_command(command) and command != :infinity and is_args(args) do
    Call.run(server, command, args, 30_000)
  end

  def call(command, args, options), do: Call.run(__MODULE__, command, args, options)

  @doc """
  Calls a command of the worker and waits for its reply.

  `options` is the timeout in ms, or a list:

    * `:timeout` - ms, default 30 000, or `:infinity`. The worker knows it, and ends the call by
      itself; a worker that says nothing is waited for 250 ms longer
    * `:session_id` - the session that the call belongs to
    * `:timing` - `true`: `{:ok, result, timing}` says where the time went, in µs
    * `:traceparent` - the caller's span, as W3C Trace Context writes it: goes into the worker's
      logs, and with `--telemetry` the worker continues its trace

  The result has strings as keys. Errors come as `{:error, %DSPex.PythonBridge.Error{}}`; a call
  that nobody can answer is `:deadline_exceeded` or `:worker_crashed`, never an exit.

      {:ok, result} = Bridge.call(MyBridge, :execute_program, %{program_id: "qa", inputs: inputs}, 5_000)
  """
  @spec call(server(), command(), args(), OpenCall.options()) :: result()
  def call(server, command, args, options), do: Call.run(server, command, args, options)

  @doc """
  As `call/4`, in all its shapes, but returns the result alone and raises the error.
  """
  @spec call!(server(), command(), args(), OpenCall.options()) :: term()
  def call!(server, command, args, options),
    do: server |> call(command, args, options) |> result!()

  @doc false
  def call!(command), do: command |> call() |> result!()
  @doc false
  def call!(command, args), do: command |> call(args) |> result!()
  @doc false
  def call!(command, args, options), do: command |> call(args, options) |> result!()

  defp result!({:ok, result}), do: result
  defp result!({:ok, result, timing}), do: {result, timing}
  defp result!({:error, error}), do: raise(error)

  @doc """
  Sends a command whose reply nobody waits for. `:ok` means that it was sent; an error reply is
  logged. Also `cast(command)`, `cast(command, args)` and `cast(server, command)`.
  """
  @spec cast(server(), command(), args()) :: :ok | {:error, Error.t()}
  def cast(server, command, args), do: Call.cast(server, command, args)

  @doc false
  @spec cast(command()) :: :ok | {:error, Error.t()}
  def cast(command), do: Call.cast(__MODULE__, command, %{})

  @doc false
  @spec cast(command(), args()) :: :ok | {:error, Error.t()}
  @spec cast(server(), command()) :: :ok | {:error, Error.t()}
  def cast(command, args) when is_args(args), do: Call.cast(__MODULE__, command, args)
  def cast(server, command), do: Call.cast(server, command, %{})

  @doc """
  A call as a stream of what happens: `stream(server, command, args, options)`, or
  `stream(command, args, options)` on the default bridge. Nothing is sent before it is enumerated.

  The elements of `execute_program`, in the order in which they come:

    * `{:status, %{"status" => "lm_call", "model" => model}}`, or `"lm_retry"` with `"attempt"`,
      `"wait"` (seconds) and `"lm_code"` before the model is asked again
    * `{:chunk, %{"field" => field, "text" => text}}`
    * `{:tool_call, %{"name" => name, "args" => args}}`
    * `{:tool_result, %{"name" => name, "result" => result}}`
    * `{:timing, timing}`, where that was asked for
    * `{:result, result}`, the last one

  Other events have their name as a string. An error raises `DSPex.PythonBridge.Error`. Taking less
  than the whole stream cancels the call. A consumer that is more than 256 events behind makes the
  worker wait. `options` as for `call/4`; the timeout is that of the whole stream.
  """
  @spec stream(server(), command(), args(), OpenCall.options()) :: Enumerable.t()
  def stream(server, command, args, options), do: EventStream.new(server, command, args, options)

  @doc false
  @spec stream(command(), args(), OpenCall.options()) :: Enumerable.t()
  @spec stream(server(), command(), args()) :: Enumerable.t()
  def stream(server, command, args)
      when is_command(command) and command != :infinity and is_args(args) do
    EventStream.new(server, command, args, 30_000)
  end

  def stream(command, args, options), do: EventStream.new(__MODULE__, command, args, options)

  @doc false
  @spec stream(command(), args()) :: Enumerable.t()
  def stream(command, args) when is_args(args),
    do: EventStream.new(__MODULE__, command, args, 30_000)

  @doc """
  Declares Elixir functions that programs of type `react` may call; see `DSPex.Tool`.

  Also `register_tools(tools)`, `(server, tools)` and `(tools, options)`. `options`: `:session_id`,
  default `"default"`, and `:timeout`. Tools are added to those that the session has; one of a name
  that is there takes its place. Other sessions have the tools of the default session beside their
  own, which come first. A restarted worker has only the tools of the `:tools` option, and those that
  `:setup` registers.
  """
  @spec register_tools(server(), [DSPex.Tool.t()], keyword()) :: result()
  def register_tools(server, tools, options), do: Tools.register(server, tools, options)

  @doc false
  def register_tools(tools), do: Tools.register(__MODULE__, tools, [])

  @doc false
  def register_tools(tools, options) when is_list(tools) do
    Tools.register(__MODULE__, tools, options)
  end

  def register_tools(server, tools), do: Tools.register(server, tools, [])

  @doc """
  Returns the state and the statistics of a bridge, without asking its worker. By name it asks
  nobody, so it answers while a bridge starts, too; a pid is asked, and is `:not_running` until its
  first start is over.

    * `:status` - `:starting`, `:running`, `:stopping`, or `:not_running`
    * `:worker_pid` - the operating system's id of the worker, `nil` while there is none
    * `:uptime` - ms since the worker was started
    * `:open_calls`
    * `:last_error` - why the last worker ended or did not start, while no other has; or `nil`
    * `:stats` - counted since the first start under this name: `:starts` and `:restarts` of
      workers, `:calls`, `:replies`, `:casts`, `:events`, `:tool_calls`, `:late_replies` (dropped),
      `:abandoned` (cancelled because the caller was gone or late), and `:errors` by code

  What the worker itself counts is `call(:get_stats)`.
  """
  @spec get_status(server()) :: map()
  def get_status(server \\ __MODULE__) do
    table = status_table(server)

    case :ets.lookup(table, :worker) do
      [{:worker, status, os_pid, started, counters, calls}] ->
        %{
          status: status,
          worker_pid: os_pid,
          uptime: uptime(started),
          open_calls: Connection.open_calls(calls),
          last_error: :ets.lookup(table, :failure)[:failure],
          stats: Statistics.read(counters)
        }

      [] ->
        %{status: :not_running}
    end
  rescue
    _ in [ArgumentError, Error] -> %{status: :not_running}
  end

  defp status_table(%Connection{bridge: table}), do: table
  defp status_table(name) when is_atom(name), do: name

  defp status_table(server) do
    case Connection.ask(server, :table, Connection.now() + @status_patience) do
      table when table in [nil, :ended] -> raise ArgumentError, "no such bridge"
      table -> table
    end
  end

  defp uptime(nil), do: 0

  defp uptime(started) do
    System.convert_time_unit(System.monotonic_time() - started, :native, :millisecond)
  end

  @doc """
  Stops a bridge and its worker: open calls get the worker's grace period of 2 s, then both are
  gone. A bridge that does not run is stopped already. Exits when that takes more than `timeout` ms.
  """
  @spec stop(GenServer.server(), timeout()) :: :ok
  def stop(server \\ __MODULE__, timeout \\ 5_000) do
    GenServer.stop(server, :normal, timeout)
  catch
    :exit, reason when reason == :noproc or elem(reason, 0) == :noproc -> :ok
    # Somebody else stopped it meanwhile.
    :exit, {{_reason, {:sys, :terminate, _}}, _} -> :ok
  end
end
