defmodule DSPex.PythonBridge.Cluster.Routing do
  @moduledoc """
  Chooses the node of a call, runs the call there, and decides after the loss of a node whether to run
  it on another one. Calls of a pool without a cluster run here.
  """

  alias DSPex.PythonBridge.{Connection, Error, OpenCall, Pool, PoolErrorHandler, RetryBudget}
  alias DSPex.PythonBridge.Cluster.{Homes, Remote, RemoteStream, Ring, View}
  alias DSPex.PythonBridge.Pool.{Execution, Request, Streams}

  # Before a node is chosen again for a call that has found the pool of one stopped, ms.
  @pause 10

  @typedoc "Whether a node is asked as the owner of a session, or because the session is there."
  @type role :: :owner | :home

  @doc "Runs a call; see `DSPex.PythonBridge.SessionPoolV2.execute_in_session/4`."
  @spec run(String.t() | nil, atom() | String.t(), map() | keyword(), Request.options()) ::
          Execution.result()
  def run(session_id, command, args, options) do
    request = Request.new(session_id, command, args, options)
    if request.pool.cluster, do: run(request, :call), else: Execution.run(request)
  rescue
    error in Error -> {:error, error}
  end

  @doc "Returns the stream of a call; see `DSPex.PythonBridge.SessionPoolV2.stream/3`."
  @spec stream(atom() | String.t(), map() | keyword(), Request.options()) :: Enumerable.t()
  def stream(command, args, options) do
    {session_id, options} =
      if is_list(options), do: Keyword.pop(options, :session_id), else: {nil, options}

    Stream.flat_map([:once], fn :once ->
      request = Request.new(session_id, command, args, options)

      with {:error, error} <-
             if(request.pool.cluster, do: run(request, :stream), else: Streams.elements(request)),
           do: raise(error)
    end)
  end

  defp run(request, kind) do
    view = View.get(request.pool.name)

    case place(request, view) do
      {:here, request} -> here(kind, request)
      {:there, role, node, request} -> there(kind, request, role, node, view)
      {:error, error} -> {:error, error}
    end
  end

  # Where

  defp place(%{pool: %{commands: commands}} = request, view) when commands == %{} do
    # No worker of this node has told yet what its commands do.
    case Ring.nodes(view.ring) -- [node()] do
      [] -> {:here, request}
      others -> {:there, :owner, Enum.random(others), request}
    end
  end

  defp place(request, view) do
    case Request.kind(request) do
      {:error, error} -> {:error, error}
      {_kind, %{session_id: nil} = request} -> {:here, request}
      {_kind, request} -> in_session(request, Ring.owner(view.ring, request.session_id), view)
    end
  end

  defp in_session(%{pool: pool, session_id: id} = request, owner, view) when owner == node() do
    known = Homes.known(pool, id)

    case Homes.place(request, view, known) do
      {:ok, home} when home == pool.cluster.incarnation -> {:here, request}
      {:ok, home} -> {:there, :home, View.node_of(view, home), request}
      :lost -> with :again <- lost_state(request, known), do: in_session(request, owner, view)
    end
  end

  defp in_session(request, owner, _view), do: {:there, :owner, owner, request}

  # Of several callers that know the session, one is told.
  defp lost_state(request, known) do
    if Homes.forget(request.pool, request.session_id, known),
      do: {:error, Request.lost()},
      else: :again
  end

  # Here and there

  defp here(:call, request), do: Execution.run(request)
  defp here(:stream, request), do: Streams.elements(request)

  defp there(kind, %{pool: pool, session_id: id} = request, role, node, view) do
    known = id && Homes.known(pool, id)
    answer = ask(kind, node, view.lines[node], [kind, role, wire(request), known], request)

    case answer do
      {:ok, {:done, result, home}} ->
        if id, do: Homes.found(pool, id, home)
        result

      {:ok, {:at, home}} ->
        there(kind, request, :home, home, view)

      {:ok, :lost} ->
        with :again <- lost_state(request, known), do: run(request, kind)

      {:ok, :not_running} ->
        not_running(kind, request, node)

      :lost ->
        lost_node(kind, request, node)

      :late ->
        {:error, OpenCall.late("the node #{node} has not answered in time")}
    end
  end

  defp ask(:call, node, line, args, request),
    do: Remote.call(node, line, {__MODULE__, :serve, args}, request.deadline)

  defp ask(:stream, node, line, args, request),
    do:
      RemoteStream.open(node, line, {__MODULE__, :serve, args}, request.deadline, fn ->
        lost(node)
      end)

  # Nothing has been started. The others leave a node out as soon as they notice that its pool has ended.
  defp not_running(kind, request, node) do
    if Connection.remaining(request.deadline) == 0 do
      {:error, OpenCall.late("the pool on #{node} was stopped")}
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
  @spec serve(:call | :stream, role(), map(), reference() | nil) ::
          {:done, term(), reference()} | {:at, node()} | :lost | :not_running
  def serve(kind, role, %{pool: name} = wire, known) do
    case Pool.get(name) do
      %Pool{cluster: %{incarnation: own}} = pool ->
        request = request(wire, pool)

        case if(role == :owner, do: owned(request, known), else: :here) do
          :here -> done(here(kind, request), own)
          elsewhere -> elsewhere
        end

      _ ->
        :not_running
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

  defp owned(%{session_id: nil}, _known), do: :here

  defp owned(%{pool: pool} = request, known) do
    view = View.get(pool.name)

    case Homes.place(request, view, known) do
      {:ok, home} when home == pool.cluster.incarnation -> :here
      {:ok, home} -> {:at, View.node_of(view, home)}
      :lost -> :lost
    end
  end

  # No worker has got the call.
  defp done({:error, %Error{code: :worker_crashed, category: :initialization}}, _home),
    do: :not_running

  defp done(result, home), do: {:done, result, home}
end
