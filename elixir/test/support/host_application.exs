# The application of `release_test.exs`: kills its worker ten times, and prints its state then.
defmodule Host.Application do
  use Application
  alias DSPex.PythonBridge.Bridge

  @impl true
  def start(_type, _args) do
    children = [
      {Bridge, adapter: "echo", backoff_max: 100},
      Supervisor.child_spec({Task, &check/0}, restart: :temporary)
    ]

    Supervisor.start_link(children, strategy: :one_for_one, name: Host.Supervisor)
  end

  defp check do
    bridge = Process.whereis(Bridge)

    for number <- 1..10 do
      System.cmd("kill", ["-9", to_string(running().worker_pid)])
      wait(fn -> Bridge.get_status().stats.restarts == number end)
      {:ok, %{"n" => ^number}} = Bridge.call(:echo_decoded, %{n: number})
    end

    same = Process.whereis(Bridge) == bridge and Process.whereis(Host.Supervisor) != nil
    IO.puts("survived #{running().stats.restarts} #{same}")
    System.stop(0)
  end

  defp running,
    do:
      wait(fn ->
        with %{status: :running} = status <- Bridge.get_status(), do: status, else: (_ -> nil)
      end)

  defp wait(condition) do
    condition.() || (Process.sleep(5) && wait(condition))
  end
end
