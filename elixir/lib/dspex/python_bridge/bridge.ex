defmodule DSPex.PythonBridge.Bridge do
  @moduledoc """
  A bridge: a process that has one Python worker, and the functions to call it.

      children = [{DSPex.PythonBridge.Bridge, []}]
      Supervisor.start_link(children, strategy: :one_for_one)

      {:ok, %{"status" => "ok"}} = DSPex.PythonBridge.Bridge.call(:ping)

  The bridge that `start_link/1` registers by default is named `DSPex.PythonBridge.Bridge`. Calls
  go to it unless they name another bridge: then the name or pid is the first argument, and no
  argument may be left out.

      Bridge.call(:ping)                        # the default bridge
      Bridge.call(MyBridge, :ping, %{}, 5_000)  # the bridge named MyBridge

  Any number of processes may call at the same time.

  ## When the worker ends

  Every open call returns `{:error, error}` with the code `:worker_crashed` at once. The bridge
  stays alive and starts another worker: immediately after the first failure, then after a delay
  that doubles with each further failure up to `:backoff_max`. The delay is reset when a worker
  has run for `:healthy_after`.

  Until the new worker is ready, the status is `:starting` and new calls wait for it. A call whose
  timeout ends first returns the error of the last failure, with the last lines of the worker's
  stderr. The same holds for streams, casts, and calls that could not be sent.

  The new worker has none of the programs, models and tools of the old one. The `:setup` and
  `:tools` options restore them at every start. If the setup raises, the start has failed.

  ## When a caller ends

  Its open calls are cancelled in the worker within about 100 ms. Nothing else happens.

  ## Workers at a socket

  With the option `connect: "unix:/run/bridge.sock"`, the worker is one that a server, `dspex-bridge
  serve --listen unix:/run/bridge.sock`, has ready for each connection. Everything above holds for
  it too: the end of the connection is the end of the worker, and the next connection the next
  worker. While there is no server, the bridge tries again as for a worker that does not start.

  What the worker is started with are flags of the server, so `:python`, `:adapter`, `:args`,
  `:env`, `:threads` and `:stuck_after` are refused. Its `--max-frame` should not exceed
  `:max_frame`: a longer frame ends the connection. The worker's stderr goes to the server.

  ## Names

  The name of a bridge is also the name of its ETS table. A call by name costs one lookup; a call
  by pid or `{:via, …}` costs an extra message to the bridge.
  """

  alias DSPex.PythonBridge.{
    Call,
    Connection,
    Error,
    EventStream,
    Functions,
    OpenCall,
    Options,
    Protocol,
    Server,
    Statistics
  }

  @type server :: GenServer.server() | Connection.t()
  @type command :: Protocol.command()
  @type args :: map() | keyword()
  @type result :: {:ok, term()} | {:ok, term(), timing :: map()} | {:error, Error.t()}

  # How long `get_status/1` waits for a pid that is starting or stopping, ms.
  @status_patience 1_000

  # The default timeout of a call, ms.
  @timeout 30_000

  @doc """
  Returns the child specification of a bridge.

  Under a supervisor, a first worker that does not start is not fatal: the bridge logs the reason
  and tries again, as after a crash. With `retry_start: false` the start of the bridge fails
  instead.
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(options) do
    options = Options.of_child!(options)

    %{
      id: Keyword.get(options, :name, __MODULE__),
      start: {__MODULE__, :start_link, [options]},
      shutdown: 5_000
    }
  end

  @doc """
  Starts a bridge and waits until its worker is ready.

  ## Options

    * `:name` - the registered name, default `DSPex.PythonBridge.Bridge`; `nil` for none
    * `:connect` - the address of a Unix socket, `"unix:/run/bridge.sock"`, at which
      `dspex-bridge serve` listens: the bridge connects to a worker there instead of starting
      one; see [below](#module-workers-at-a-socket)
    * `:python` - the path of the interpreter; see `DSPex.PythonBridge.Python` for the default
    * `:adapter` - the adapter that defines the worker's commands: `"dspy"` (default), `"echo"`,
      or `"module:attr"`
    * `:args` - further flags of `python -m bridge worker`, for instance
      `["--program", "research=research:Research"]` for a `dspy.Module` of your own
    * `:env` - environment variables of the worker: a map, a list of pairs, or a function that
      returns one; the value `nil` removes a variable
    * `:threads` - how many calls the worker runs at the same time, default 64
    * `:max_frame` - the maximum size of a request or reply in bytes, default 64 MiB
    * `:format` - `:etf` (default), or `:json` if a JSON module is available
    * `:tools` - tools of the default session, see `register_tools/3`
    * `:models`, `:metrics`, `:rewards`, `:embedders` - other functions of the default session by
      their names, see `register/3`
    * `:setup` - a function of one argument, the bridge. It runs after every start, before the
      worker takes calls from other processes. If it raises, the start has failed; an error that
      it returns is logged
    * `:logs` - `true` (default) sends the worker's logs to `Logger`, `false` to stderr
    * `:start_timeout` - how long the worker may take to answer its first request, in ms, default
      30 000
    * `:setup_timeout` - how long registering `:tools` and running `:setup` may take, in ms,
      default 60 000
    * `:heartbeat_interval` - the time between heartbeats in ms, default 2 000; `false` for none.
      A worker that misses three in a row is replaced
    * `:stuck_after` - replace the worker when all its threads are busy and none has made progress
      for this many ms, default 300 000; `false` for never
    * `:backoff_min`, `:backoff_max` - the delay in ms before the start that follows the second
      failure in a row, and the maximum that it grows to; defaults 50 and 10 000. Each delay is
      shortened at random by up to half
    * `:healthy_after` - how long a worker must run, in ms, for its end not to count as another
      failure in a row, default 5 000
    * `:retry_start` - whether the bridge stays alive and tries again when its first worker does
      not start; default `false` here, `true` under a supervisor (`child_spec/1`)
    * `:tool_timeout` - how long a tool or another function may run, in ms, default 300 000, or
      `:infinity`

  Returns `{:error, {:shutdown, %DSPex.PythonBridge.Error{}}}` if the first worker does not start;
  the message says what to do. Raises `ArgumentError` for invalid options.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(options \\ []), do: options |> Options.checked!() |> Server.start_link()

  @doc """
  Calls a command of the default bridge and waits for the reply.

  `options` is the timeout in ms, or a keyword list:

    * `:timeout` - ms, default 30 000, or `:infinity`. The worker ends the call when the timeout
      has passed; the caller waits 250 ms longer for that reply
    * `:session_id` - the session of the call
    * `:timing` - with `true` the call returns `{:ok, result, timing}`, where `timing` says how
      long each step took, in µs
    * `:traceparent` - the caller's span in the W3C Trace Context format. It appears in the
      worker's logs, and a worker with `--telemetry` continues the trace

  The keys of the result are strings. Every failure is an `{:error, %DSPex.PythonBridge.Error{}}`:
  a call that gets no reply returns `:deadline_exceeded` or `:worker_crashed` and never exits.

      {:ok, %{"status" => "ok"}} = Bridge.call(:ping)
      {:ok, result} = Bridge.call(:execute_program, %{program_id: "qa", inputs: inputs}, 5_000)
  """
  @spec call(command(), args(), OpenCall.options()) :: result()
  def call(command, args \\ %{}, options \\ @timeout),
    do: call(__MODULE__, command, args, options)

  @doc """
  Calls a command of the given bridge; otherwise like `call/3`.

      {:ok, result} = Bridge.call(MyBridge, :ping, %{}, session_id: "ann", timeout: 5_000)
  """
  @spec call(server(), command(), args(), OpenCall.options()) :: result()
  def call(server, command, args, options), do: Call.run(server, command, args, options)

  @doc """
  Calls a command of the default bridge. Returns the result alone, and raises the error.
  """
  @spec call!(command(), args(), OpenCall.options()) :: term()
  def call!(command, args \\ %{}, options \\ @timeout),
    do: call!(__MODULE__, command, args, options)

  @doc """
  Calls a command of the given bridge. Returns the result alone, and raises the error.
  """
  @spec call!(server(), command(), args(), OpenCall.options()) :: term()
  def call!(server, command, args, options) do
    case call(server, command, args, options) do
      {:ok, result} -> result
      {:ok, result, timing} -> {result, timing}
      {:error, error} -> raise error
    end
  end

  @doc """
  Sends a command to the default bridge without waiting for a reply.

  Returns `:ok` when the request was sent. An error reply is logged.
  """
  @spec cast(command(), args()) :: :ok | {:error, Error.t()}
  def cast(command, args \\ %{}), do: cast(__MODULE__, command, args)

  @doc """
  Sends a command to the given bridge without waiting for a reply; otherwise like `cast/2`.
  """
  @spec cast(server(), command(), args()) :: :ok | {:error, Error.t()}
  def cast(server, command, args), do: Call.cast(server, command, args)

  @doc """
  Returns a stream of the events of a call to the default bridge, and of its result.

  The call starts when the stream is enumerated. The elements of `execute_program`, in the order
  in which they arrive:

    * `{:status, %{"status" => "lm_call", "model" => model}}`, or `"lm_retry"` with `"attempt"`,
      `"wait"` (seconds) and `"lm_code"` before the model is asked again
    * `{:chunk, %{"field" => field, "text" => text}}`; in a program of the option `--program`, also
      `"predictor"` and `"call"`, which tell the stages of the program apart
    * `{:tool_call, %{"name" => name, "args" => args}}`
    * `{:tool_result, %{"name" => name, "result" => result}}`
    * `{:timing, timing}`, with the option `timing: true`
    * `{:result, result}`, the last element

  `execute_batch`, `evaluate` and `optimize` have `{:progress, %{"phase" => phase, "done" => done, "total" =>
  total}}`, with `"score"` and `"best"` where there are scores, and the first two also `{:row, %{"index" => index}}`
  with the result of each row.

  Other events have a string as their name. Enumeration raises `DSPex.PythonBridge.Error` if the
  call fails. Stopping early cancels the call. When the consumer has more than 256 unread events,
  the worker pauses.

  `options` are those of `call/3`; the timeout is that of the whole stream.
  """
  @spec stream(command(), args(), OpenCall.options()) :: Enumerable.t()
  def stream(command, args, options \\ @timeout), do: stream(__MODULE__, command, args, options)

  @doc """
  Returns a stream of the events of a call to the given bridge; otherwise like `stream/3`.
  """
  @spec stream(server(), command(), args(), OpenCall.options()) :: Enumerable.t()
  def stream(server, command, args, options), do: EventStream.new(server, command, args, options)

  @doc """
  Registers Elixir functions that programs of type `react` may call; see `DSPex.Tool`.

  ## Options

    * `:session_id` - the session that gets the tools, default `"default"`
    * `:timeout` - ms, default 30 000

  A tool replaces one of the same name. Every session can also use the tools of the default
  session, but prefers its own. After a restart only the tools of the `:tools` option, and those
  that `:setup` registers, are available.
  """
  @spec register_tools([DSPex.Tool.t()], keyword()) :: result()
  def register_tools(tools, options \\ []), do: register_tools(__MODULE__, tools, options)

  @doc """
  Registers tools with the given bridge; otherwise like `register_tools/2`.
  """
  @spec register_tools(server(), [DSPex.Tool.t()], keyword()) :: result()
  def register_tools(server, tools, options), do: Functions.register_tools(server, tools, options)

  @doc """
  Registers functions of the application that programs call by a name: a map or a keyword list with

    * `:models` - language models, `host/NAME` in `configure_lm`: modules with the behaviour
      `DSPex.Model`, or functions
    * `:metrics` - functions of a map with `"inputs"`, `"expected"`, `"outputs"` and, if asked for,
      `"trace"`, for the metric `%{host: name}`. They return a number, a boolean, or a map with `:score` and
      `:feedback`
    * `:rewards` - functions of a map with `"inputs"` and `"outputs"`, for the reward `%{host: name}`. They
      return a number
    * `:embedders` - functions of a map with `"texts"`. They return a list with a vector for each text, or a
      tensor

  each a map or a keyword list of names and functions. A function may also return `{:ok, result}` or
  `{:error, reason}`. It runs in a process of its own.

      :ok = Bridge.register(metrics: %{same: fn run -> run["expected"] == run["outputs"] end})

  The option `:session_id` is the session that gets the functions, default `"default"`. What applies to
  tools after a restart and in sessions applies to these functions, too; see `register_tools/2`. The
  options `:models`, … of `start_link/1` register them at each start.
  """
  @spec register(Functions.functions(), keyword()) :: :ok | {:error, Error.t()}
  def register(functions, options \\ []), do: register(__MODULE__, functions, options)

  @doc """
  Registers functions with the given bridge; otherwise like `register/2`.
  """
  @spec register(server(), Functions.functions(), keyword()) :: :ok | {:error, Error.t()}
  def register(server, functions, options), do: Functions.register(server, functions, options)

  @doc """
  Returns the state and the statistics of a bridge, without a request to its worker.

  A bridge with a name is not asked either, so this works while the bridge starts. A pid
  is asked, and reported as `:not_running` until its first start has ended.

    * `:status` - `:starting`, `:running`, `:stopping`, or `:not_running`
    * `:worker_pid` - the worker's operating system process id; `nil` without a worker, and for a
      worker at a socket until it has reported it
    * `:uptime` - ms since the start of the worker
    * `:open_calls` - the number of calls that have no reply yet
    * `:last_error` - why the last worker ended or did not start; `nil` once another one runs
    * `:stats` - counters since the first start under this name: `:starts` and `:restarts` of
      workers, `:calls`, `:replies`, `:casts`, `:events`, `:tool_calls`, `:late_replies`
      (dropped), `:abandoned` (cancelled because the caller ended or stopped waiting), and
      `:errors` by code

  `call(:get_stats)` returns the statistics of the worker itself.
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
  Stops a bridge and its worker.

  Open calls get the worker's grace period of 2 s. Returns `:ok` for a bridge that does not run,
  and exits if stopping takes more than `timeout` ms.
  """
  @spec stop(GenServer.server(), timeout()) :: :ok
  def stop(server \\ __MODULE__, timeout \\ 5_000) do
    GenServer.stop(server, :normal, timeout)
  catch
    :exit, reason when reason == :noproc or elem(reason, 0) == :noproc -> :ok
    # Another process stopped it meanwhile.
    :exit, {{_reason, {:sys, :terminate, _}}, _} -> :ok
  end
end
