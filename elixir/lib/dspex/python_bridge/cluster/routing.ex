defmodule DSPex.PythonBridge.Cluster.Routing do
  @moduledoc """
  Chooses the node of a call, runs the call there, and decides after the loss of a node whether to run
  it on another one. Calls of a pool without a cluster run here.

  Calls of a session run where the session is, those without one on the caller's node. What changes the
  state that all workers share is run on one node for all others, so that all get the changes in one order.
  """

  alias DSPex.PythonBridge.{
    Connection,
    Error,
    OpenCall,
    Pool,
    PoolErrorHandler,
    RetryBudget,
    Telemetry
  }

  alias DSPex.PythonBridge.Cluster.{Homes, Remote, RemoteStream, Ring, View}
  alias DSPex.PythonBridge.Pool.{Execution, Report, Request, Streams}

  # Before a node is chosen again for a call that has found the pool of one stopped, ms.
  @pause 10

  # Whose owner makes the changes of what all nodes share.
  @shared ""
  @changes [:all, :everyone, :end_session, :end_all]

  @typedoc "Whether a node is asked as the owner of a session, as its home, or as the one that makes changes for all."
  @type role :: :owner | :home | :leader

  @typep kind :: :call | :stream | :info

  @doc "Runs a call; see `DSPex.PythonBridge.SessionPoolV2.execute_in_session/4`."
  @spec run(String.t() | nil, atom() | String.t(), map() | keyword(), Request.options()) ::
          Execution.result()
  def run(session_id, command, args, options) do
    request = Request.new(session_id, command, args, options)
    result = if request.pool.cluster, do: run(request, :call), else: Execution.run(request)
    shared(result, request)
  rescue
    error in Error -> {:error, error}
  end

  # What a call without a session has optimized in one worker is made in all.
  defp shared(result, %{command: command, session_id: id, pool: pool} = request)
       when command in [:optimize, "optimize"] and elem(result, 0) == :ok do
    with true <- id in [nil, pool.default_session],
         {:error, error} <- share(elem(result, 1), request),
         do: {:error, error},
         else: (_ -> result)
  end

  defp shared(result, _request), do: result

  defp share(%{"document" => document, "program_id" => id}, %{pool: pool}) do
    args = %{document: document, program_id: id, if_exists: "replace"}
    run(nil, "import_program", args, pool_name: pool.name, timeout: :infinity)
  end

  defp share(result, _request), do: {:ok, result}

  @doc "Returns the stream of a call; see `DSPex.PythonBridge.SessionPoolV2.stream/3`."
  @spec stream(atom() | String.t(), map() | keyword(), Request.options()) :: Enumerable.t()
  def stream(command, args, options) do
    {session_id, options} =
      if is_list(options), do: Keyword.pop(options, :session_id), else: {nil, options}

    Stream.flat_map([:once], fn :once ->
      request = Request.new(session_id, command, args, options)

      case if(request.pool.cluster, do: run(request, :stream), else: Streams.elements(request)) do
        {:error, error} -> raise error
        elements -> Stream.each(elements, &share_event(&1, request))
      end
    end)
  end

  defp share_event({:result, result}, request) do
    with {:error, error} <- shared({:ok, result}, request), do: raise(error)
  end

  defp share_event(_event, _request), do: :ok

  @doc "Describes a session; see `DSPex.PythonBridge.SessionPoolV2.get_session_info/2`."
  @spec session_info(String.t(), Request.options()) :: {:ok, map()} | {:error, Error.t()}
  def session_info(session_id, options) do
    request = Request.new(session_id, :get_session, %{session_id: session_id}, options)
    if request.pool.cluster, do: run(request, :info), else: Report.session(request)
  rescue
    error in Error -> {:error, error}
  end

  defp run(request, kind) do
    view = View.get(request.pool.name)

    case place(request, view, kind) do
      {:here, request} -> here(kind, request)
      {:anywhere, request} -> kind |> here(request) |> or_there(kind, request, view)
      {:there, role, node, request} -> there(kind, request, role, node, view)
      {:later, request} -> later(kind, request)
      {:error, error} -> {:error, error}
    end
  end

  # A call without a session that all workers of this node refuse.
  defp or_there(
         {:error, %Error{code: :overloaded}} = full,
         :call,
         %{session_id: nil} = request,
         view
       ) do
    case others(view) do
      [] -> full
      others -> there(:call, request, :home, Enum.random(others), view)
    end
  end

  defp or_there(result, _kind, _request, _view), do: result

  # Where

  defp place(%{pool: %{commands: commands}} = request, view, _kind) when commands == %{} do
    # No worker of this node has told yet what its commands do.
    case Ring.owner(view.ring, request.session_id || @shared) do
      node when node == node() -> {:here, request}
      node -> {:there, if(request.session_id, do: :owner, else: :leader), node, request}
    end
  end

  defp place(request, view, kind) do
    case Request.kind(request) do
      {:error, error} -> {:error, error}
      {lane, %{session_id: nil} = request} when lane in @changes -> change(request, view)
      {_lane, %{session_id: nil} = request} -> anywhere(request, view)
      {_lane, request} -> in_session(request, view, kind)
    end
  end

  defp change(request, view) do
    case Ring.owner(view.ring, @shared) do
      node when node == node() and view.behind? -> {:later, request}
      node when node == node() -> {:here, request}
      node -> {:there, :leader, node, request}
    end
  end

  # Here, unless no worker of this node takes calls.
  defp anywhere(request, view) do
    case if(request.pool.slots == {}, do: others(view), else: []) do
      [] -> {:anywhere, request}
      others -> {:there, :home, Enum.random(others), request}
    end
  end

  defp others(view), do: Ring.nodes(view.ring) -- [node()]

  defp in_session(%{pool: pool, session_id: id} = request, view, kind) do
    owner = Ring.owner(view.ring, id)

    if owner == node(),
      do: owned(request, view, kind, pool.cluster),
      else: {:there, :owner, owner, request}
  end

  defp owned(request, view, kind, %{incarnation: own}) do
    known = known(request, kind)

    case Homes.place(request, view, known) do
      {:ok, ^own} -> {:here, request}
      {:ok, home} -> {:there, :home, View.node_of(view, home), request}
      :lost -> with :again <- lost_state(request, known), do: in_session(request, view, kind)
      :later -> {:later, request}
    end
  end

  # Who asks about a session does not depend on its state.
  defp known(%{session_id: id}, kind) when id == nil or kind == :info, do: nil
  defp known(%{session_id: id, pool: pool}, _kind), do: Homes.known(pool, id)

  # Of several callers that know the session, one gets the error.
  defp lost_state(request, known) do
    if Homes.forget(request.pool, request.session_id, known),
      do: {:error, Request.lost()},
      else: :again
  end

  # Here and there

  defp here(:call, request) do
    result = Execution.run(request)
    if ended?(request, result), do: Homes.ended(request.pool, request.session_id)
    result
  end

  defp here(:stream, request), do: Streams.elements(request)
  defp here(:info, request), do: Report.session(request)

  defp there(kind, %{pool: pool, session_id: id} = request, role, node, view) do
    known = known(request, kind)
    served = {__MODULE__, :serve, [kind, role, wire(request), known]}

    answer =
      Telemetry.forwarded(request, node, fn ->
        ask(kind, view.links[node], served, request.deadline, node)
      end)

    case answer do
      {:ok, {:done, result, home}} ->
        if id && home, do: found(request, kind, result, home)
        result

      {:ok, {:at, home}} when home == node() ->
        Homes.found(pool, id, pool.cluster.incarnation)
        here(kind, request)

      {:ok, {:at, home}} ->
        there(kind, request, :home, home, view)

      {:ok, :lost} ->
        with :again <- lost_state(request, known), do: run(request, kind)

      answer when answer in [{:ok, :later}, :not_sent] ->
        later(kind, request)

      :lost ->
        lost_node(kind, request, node)

      :late ->
        {:error, OpenCall.late("the node #{node} has not answered in time")}
    end
  end

  # Who asks about a session may find that there is none.
  defp found(_request, :info, _result, _home), do: true

  defp found(%{pool: pool, session_id: id} = request, _kind, result, home) do
    if ended?(request, result), do: Homes.ended(pool, id), else: Homes.found(pool, id, home)
  end

  defp ended?(%{pool: pool, command: command}, result) when elem(result, 0) == :ok,
    do: match?({:end_session, _}, Pool.command(pool, command))

  defp ended?(_request, _error_or_stream), do: false

  defp ask(:stream, link, served, deadline, node),
    do: RemoteStream.open(link, served, deadline, fn -> lost(node) end)

  defp ask(_kind, link, served, deadline, _node), do: Remote.call(link, served, deadline)

  # Nothing has been started: the pool of a node was stopped, or lacks changes that others have made.
  defp later(kind, request) do
    if Connection.remaining(request.deadline) == 0 do
      {:error, OpenCall.late("no node has taken the call in time")}
    else
      Process.sleep(@pause)
      run(request, kind)
    end
  end

  defp lost_node(kind, request, node) do
    error = lost(node)
    request = %{request | deaths: request.deaths + 1}

    decision =
      PoolErrorHandler.decide(error,
        attempts: request.attempts,
        idempotent: request.idempotent,
        deaths: request.deaths,
        remaining: Connection.remaining(request.deadline)
      )

    if decision.repeat && RetryBudget.take(request.pool.budget) do
      Process.sleep(decision.delay)
      run(%{request | attempts: request.attempts + 1}, kind)
    else
      {:error, error}
    end
  end

  defp lost(node) do
    line = "the node #{node} was lost during the call"
    Error.new(:worker_crashed, line, %{"node" => Atom.to_string(node)})
  end

  # On the other node

  # What another node needs to know of a request; it has a clock of its own.
  defp wire(request) do
    request
    |> Map.take([:session_id, :command, :args, :envelope, :idempotent])
    |> Map.merge(%{pool: request.pool.name, remaining: Connection.remaining(request.deadline)})
  end

  @doc false
  @spec serve(kind(), role(), map(), reference() | nil) ::
          {:done, term(), reference() | nil} | {:at, node()} | :lost | :later
  def serve(kind, role, %{pool: name} = wire, known) do
    case Pool.get(name) do
      %Pool{cluster: %{incarnation: own}} = pool ->
        request = request(wire, pool)

        case where(role, request, known) do
          :here -> done(here(kind, request), own)
          elsewhere -> elsewhere
        end

      _ ->
        :later
    end
  rescue
    error in Error -> done({:error, error}, nil)
  end

  defp request(wire, pool) do
    {remaining, wire} = Map.pop!(wire, :remaining)

    Request
    |> struct!(%{wire | pool: pool} |> Map.put(:deadline, OpenCall.deadline(remaining)))
    |> Request.shortened()
  end

  defp where(:home, _request, _known), do: :here

  defp where(:leader, request, _known),
    do: if(View.get(request.pool.name).behind?, do: :later, else: :here)

  defp where(:owner, %{pool: pool} = request, known) do
    view = View.get(pool.name)

    case Homes.place(request, view, known) do
      {:ok, home} when home == pool.cluster.incarnation -> :here
      {:ok, home} -> {:at, View.node_of(view, home)}
      lost_or_later -> lost_or_later
    end
  end

  # No worker has got the call.
  defp done({:error, %Error{code: :worker_crashed, category: :initialization}}, _home),
    do: :later

  defp done(result, home), do: {:done, result, home}
end
