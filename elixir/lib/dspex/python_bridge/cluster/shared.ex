defmodule DSPex.PythonBridge.Cluster.Shared do
  @moduledoc """
  What all nodes of a cluster have in common: the changes made without a session, which
  `DSPex.PythonBridge.Pool.Journal` keeps, and the application's functions.

  Functions of the default session are on all nodes. Those of a session are on the node that has registered
  them and at the session's home; another node looks for one that it lacks when a program calls it.
  """

  alias DSPex.PythonBridge.{Connection, Error, Functions, Pool}
  alias DSPex.PythonBridge.Cluster.{Homes, Remote, View}
  alias DSPex.PythonBridge.Pool.Journal

  # For the entries of a journal, and for functions, ms.
  @journal_timeout 30_000
  @function_timeout 5_000

  @doc "Takes over what another node shares with the nodes that it knows. Exits if it does not answer."
  @spec take_over(atom(), node(), Remote.link()) :: :ok
  def take_over(name, node, link) do
    deadline = Connection.now() + @journal_timeout

    case Remote.call(link, {__MODULE__, :all, [name]}, deadline) do
      {:ok, {journal, functions}} ->
        :ok = Journal.adopt(name, node, journal)
        Functions.add(Pool.fetch!(name).functions, functions)

      no_answer ->
        exit(no_answer)
    end
  end

  @doc false
  @spec all(atom()) :: {Journal.state(), list()}
  def all(name), do: {Journal.state(name), Functions.shared(Pool.fetch!(name).functions)}

  @doc "Registers functions on this node and where they are called."
  @spec register(Pool.t(), String.t() | nil, list()) :: :ok | {:error, Error.t()}
  def register(%{cluster: nil} = pool, session_id, functions),
    do: Functions.put(pool.functions, session_id, functions)

  def register(pool, session_id, functions) do
    links = links(pool, session_id, View.get(pool.name))
    put = {__MODULE__, :put, [pool.name, session_id, functions]}
    Remote.call_all(links, put, Connection.now() + @function_timeout)
    put(pool.name, session_id, functions)
  end

  defp links(pool, session_id, view) do
    if Functions.default?(session_id),
      do: view.links,
      else: Map.take(view.links, [View.node_of(view, Homes.known(pool, session_id))])
  end

  @doc false
  @spec put(atom(), String.t() | nil, list()) :: :ok | {:error, Error.t()}
  def put(name, session_id, functions),
    do: Functions.put(Pool.fetch!(name).functions, session_id, functions)

  @doc "Returns the function of a session that another node has."
  @spec find(atom(), String.t(), Functions.kind(), String.t()) ::
          {:ok, Functions.function_of_host()} | :error
  def find(name, session_id, kind, function) do
    question = {__MODULE__, :own, [name, session_id, kind, function]}
    deadline = Connection.now() + @function_timeout

    Enum.find_value(Remote.call_all(View.get(name).links, question, deadline), :error, fn
      {_node, {:ok, {:ok, function}}} -> {:ok, function}
      _ -> nil
    end)
  end

  @doc false
  @spec own(atom(), String.t(), Functions.kind(), String.t()) ::
          {:ok, term()} | :error | :no_worker
  def own(name, session_id, kind, function) do
    case Pool.get(name) do
      nil -> :error
      pool -> Functions.find_own(pool.functions, session_id, kind, function)
    end
  end
end
