defmodule Answers.Application do
  @moduledoc false

  use Application

  alias DSPex.PythonBridge.SessionPoolV2

  @drain_ms 10_000
  @step_ms 50

  @impl true
  def start(_type, _args) do
    pool = [
      connect: System.get_env("BRIDGE_SOCKET", "unix:/run/bridge/bridge.sock"),
      workers: String.to_integer(System.get_env("WORKERS", "4")),
      cluster: Node.alive?(),
      setup: &Answers.set_up/1
    ]

    children = [
      {Answers.Nodes, System.get_env("CLUSTER_SERVICE")},
      {SessionPoolV2, pool},
      {Answers.Web, String.to_integer(System.get_env("PORT", "8080"))}
    ]

    Supervisor.start_link(children, strategy: :one_for_one)
  end

  # Nobody sends further requests by now: those that run may end.
  @impl true
  def prep_stop(state) do
    wait_for_calls(div(@drain_ms, @step_ms))
    state
  end

  defp wait_for_calls(0), do: :ok

  defp wait_for_calls(steps) do
    unless SessionPoolV2.get_pool_status()[:open_calls] in [0, nil] do
      Process.sleep(@step_ms)
      wait_for_calls(steps - 1)
    end
  end
end
