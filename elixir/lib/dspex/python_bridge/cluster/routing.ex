defmodule DSPex.PythonBridge.Cluster.Routing do
  @moduledoc """
  Chooses the node of a call, runs the call there, and decides after the loss of a node whether to run
  it on another one. Calls of a pool without a cluster run here.
  """

  alias DSPex.PythonBridge.{Connection, Error, OpenCall, Pool, PoolErrorHandler, RetryBudget}
  alias DSPex.PythonBridge.Cluster.{Remote, Ring, View}
  alias DSPex.PythonBridge.Pool.{Execution, Request}

  # Before a call is sent again to a node whose pool has just been stopped, ms.
  @pause 10

  @doc "Runs a call; see `DSPex.PythonBridge.SessionPoolV2.execute_in_session/4`."
  @spec run(String.t() | nil, atom() | String.t(), map() | keyword(), Request.options()) ::
          Execution.result()
  def run(session_id, command, args, options) do
    request = Request.new(session_id, command, args, options)
    if request.pool.cluster, do: route(request), else: Execution.run(request)
  rescue
    error in Error -> {:error, error}
  end

  # Without workers its commands are not known on this node.
  defp route(%{pool: %{commands: commands}} = request) when commands == %{} do
    view = View.get(request.pool.name)
    at(node_of(view, request.session_id), request, view)
  end

  defp route(request) do
    case Request.kind(request) do
      {:error, error} -> {:error, error}
      {_kind, %{session_id: nil} = request} -> Execution.run(request)
      {_kind, request} -> in_session(request)
    end
  end

  defp in_session(request) do
    view = View.get(request.pool.name)
    at(Ring.owner(view.ring, request.session_id), request, view)
  end

  defp node_of(view, nil) do
    nodes = Ring.nodes(view.ring)
    if node() in nodes, do: node(), else: Enum.random(nodes)
  end

  defp node_of(view, session_id), do: Ring.owner(view.ring, session_id)

  defp at(node, request, _view) when node == node(), do: Execution.run(request)

  defp at(node, request, view) do
    served = {__MODULE__, :serve, [wire(request)]}

    case Remote.call(node, view.lines[node], served, request.deadline) do
      {:ok, {:result, result}} -> result
      {:ok, :not_running} -> not_running(node, request)
      :lost -> lost(node, request)
      :late -> {:error, OpenCall.late("the node #{node} has not answered in time")}
    end
  end

  # Nothing has been started. The node is left out as soon as its member's end is noticed.
  defp not_running(node, request) do
    if Connection.remaining(request.deadline) == 0 do
      {:error, OpenCall.late("the pool on #{node} was stopped")}
    else
      Process.sleep(@pause)
      route(request)
    end
  end

  defp lost(node, request) do
    line = "the node #{node} was lost during the call"
    error = Error.new(:worker_crashed, line, %{"node" => Atom.to_string(node)})
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
      route(%{request | attempts: request.attempts + 1})
    else
      {:error, error}
    end
  end

  # What another node needs to know of a request; its clock is another one.
  defp wire(request) do
    %{
      pool: request.pool.name,
      session_id: request.session_id,
      command: request.command,
      args: request.args,
      envelope: request.envelope,
      remaining: Connection.remaining(request.deadline),
      idempotent: request.idempotent
    }
  end

  @doc false
  @spec serve(map()) :: {:result, Execution.result()} | :not_running
  def serve(%{pool: name} = wire) do
    case Pool.get(name) do
      nil -> :not_running
      pool -> {:result, wire |> request(pool) |> Execution.run()}
    end
  end

  defp request(wire, pool) do
    {remaining, wire} = Map.pop!(wire, :remaining)

    Request
    |> struct!(%{wire | pool: pool} |> Map.put(:deadline, OpenCall.deadline(remaining)))
    |> Request.shortened()
  end
end
