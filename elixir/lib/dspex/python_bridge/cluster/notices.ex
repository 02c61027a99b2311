defmodule DSPex.PythonBridge.Cluster.Notices do
  @moduledoc """
  Tells the application, in logs and `:telemetry` events, what becomes of the nodes of a cluster and what is
  wrong with them.
  """

  require Logger

  alias DSPex.PythonBridge.Cluster.Settings
  alias DSPex.PythonBridge.Telemetry

  @typedoc "Whether a node takes part, its pool was stopped, its connection was lost, or it does not answer."
  @type event :: :joined | :left | :lost | :hung

  @doc "Reports that a node takes part in the cluster of a pool from now on, or does so no longer."
  @spec node(atom(), node(), event()) :: :ok
  def node(pool, node, event) do
    Logger.log(level(event), "#{inspect(pool)}: #{line(event, node)}")
    Telemetry.cluster(%{pool: pool, node: node, event: event})
  end

  defp level(event) when event in [:lost, :hung], do: :warning
  defp level(_event), do: :info

  defp line(:joined, node), do: "the pool on #{node} takes part in the cluster"
  defp line(:left, node), do: "the pool on #{node} was stopped and has left the cluster"
  defp line(:lost, node), do: "the connection to #{node} was lost; its sessions go to other nodes"

  defp line(:hung, node),
    do: "#{node} sends no heartbeats; it gets no calls until it sends some again"

  @doc "Warns of what is wrong with the settings of another node's pool."
  @spec settings(atom(), node(), own :: Settings.t(), theirs :: Settings.t()) :: :ok
  def settings(pool, node, own, theirs) do
    for line <- Settings.complaints(own, node, theirs), do: warn(pool, line)
    :ok
  end

  @doc "Warns of a node whose pool speaks another version of the protocol between members."
  @spec version(atom(), node(), own :: integer(), theirs :: term()) :: :ok
  def version(pool, node, own, theirs) do
    warn(
      pool,
      "the pool on #{node} speaks version #{inspect(theirs)} of the cluster's protocol, this one " <>
        "version #{own}: they give each other no calls"
    )
  end

  defp warn(pool, line), do: Logger.warning("#{inspect(pool)}: #{line}")
end
