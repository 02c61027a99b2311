defmodule DSPex.PythonBridge.Cluster.Overview do
  @moduledoc """
  What a pool reports about its cluster: the state of each node, whether all workers answer, and the
  statistics of all workers together.
  """

  alias DSPex.PythonBridge.{Error, OpenCall, Parallel, Pool}
  alias DSPex.PythonBridge.Cluster.{Member, Remote, Ring, View}
  alias DSPex.PythonBridge.Pool.Report

  @doc "Returns the state of a pool; see `DSPex.PythonBridge.SessionPoolV2.get_pool_status/1`."
  @spec status(atom()) :: map()
  def status(name) do
    case Pool.get(name) do
      %{cluster: %{}} = pool -> Map.merge(Report.status(name), nodes(pool))
      _ -> Report.status(name)
    end
  end

  defp nodes(%{name: name}) do
    members = members(name)
    %{nodes: if(members == %{}, do: [], else: Ring.nodes(View.get(name).ring)), cluster: members}
  end

  @doc "Asks all workers; see `DSPex.PythonBridge.SessionPoolV2.health_check/2`."
  @spec health(Pool.t(), timeout()) :: {:ok, map()} | {:error, Error.t()}
  def health(%{cluster: nil} = pool, timeout), do: Report.health(pool, timeout)

  def health(pool, timeout) do
    nodes = ask(pool, :health, timeout)
    own = nodes[node()]

    if Enum.any?(nodes, fn {_, result} -> elem(result, 0) == :ok end) do
      answered = with {:error, _} <- own, do: {:ok, %{healthy: [], failed: %{}}}
      {:ok, answered |> elem(1) |> Map.merge(%{status: together(nodes), nodes: nodes})}
    else
      own
    end
  end

  defp together(nodes) do
    healthy? = fn {_, result} -> match?({:ok, %{status: :healthy}}, result) end
    if Enum.all?(nodes, healthy?), do: :healthy, else: :degraded
  end

  @doc "Returns merged statistics; see `DSPex.PythonBridge.SessionPoolV2.get_stats/2`."
  @spec stats(Pool.t(), timeout()) :: {:ok, map()} | {:error, Error.t()}
  def stats(%{cluster: nil} = pool, timeout),
    do: pool |> Report.figures(timeout) |> Report.merged()

  def stats(pool, timeout) do
    all = for {node, {:ok, figures}} <- ask(pool, :figures, timeout), do: {node, figures}
    {overviews, details} = all |> Enum.map(&on_node/1) |> Enum.unzip()
    Report.merged({Enum.concat(overviews), Enum.concat(details)})
  end

  defp on_node({node, {overviews, details}}) do
    named = fn stats -> for {slot, stats} <- stats, do: {{node, slot}, stats} end
    {named.(overviews), named.(details)}
  end

  # Each node's own answer, by node.
  defp ask(%{name: name} = pool, what, timeout) do
    deadline = OpenCall.deadline(timeout)
    question = {__MODULE__, :own, [what, name, timeout]}
    links = View.get(name).links

    [own, others] =
      Parallel.map(
        [
          fn -> report(what, pool, timeout) end,
          fn -> Remote.call_all(links, question, deadline) end
        ],
        & &1.()
      )

    answers = for {node, answer} <- others, do: {node, result(node, answer)}
    silent = for {node, %{state: :hung}} <- members(name), do: {node, result(node, :lost)}
    Map.new(silent ++ [{node(), own} | answers])
  end

  defp members(name) do
    Member.nodes(name)
  catch
    # The pool has been stopped.
    :exit, _ -> %{}
  end

  defp result(_node, {:ok, {status, _} = result}) when status in [:ok, :error], do: result

  defp result(node, :late),
    do: {:error, OpenCall.late("the node #{node} has not answered in time")}

  defp result(node, _lost_or_stopped) do
    {:error, Error.new(:worker_crashed, "the node #{node} does not answer")}
  end

  @doc false
  @spec own(:health | :figures, atom(), timeout()) :: {:ok, term()} | {:error, Error.t()}
  def own(what, name, timeout), do: report(what, Pool.fetch!(name), timeout)

  defp report(:health, pool, timeout), do: Report.health(pool, timeout)
  defp report(:figures, pool, timeout), do: {:ok, Report.figures(pool, timeout)}
end
