defmodule DSPex.PythonBridge.Pool.Launch do
  @moduledoc """
  Starts the worker of a slot: forked by the pool's template, at a socket that the operator names, or
  a process of its own on a port. Before it takes calls, it runs the pool's `:setup` and gets the state
  that all workers share.
  """

  alias DSPex.PythonBridge.{Bridge, Connection, Owner, Pool, Statistics, WorkerPort}
  alias DSPex.PythonBridge.Pool.{Journal, Slot, Template}

  # Less than the supervisor of a pool waits for its slots, ms.
  @stop_timeout 4_000
  @describe_timeout 30_000

  @doc """
  Starts a worker and returns its slot. The calling process, the pool's server, gets
  `{:started, owner, connection}`, before that the call `{:commands, commands}` if it does not know the
  commands yet, and the `:DOWN` of the owner.
  """
  @spec start(map(), pos_integer(), keyword()) :: Slot.t()
  def start(%{pool: pool, own: own} = server, number, fields) do
    worker = %{
      name: {pool.name, number},
      counters: Statistics.for_name(pool.name),
      tools: pool.tools
    }

    spec = %{
      id: number,
      start: {Owner, :start_link, [worker, options(server), self()]},
      restart: :temporary,
      shutdown: @stop_timeout
    }

    {:ok, owner} = DynamicSupervisor.start_child(server.supervisor, spec)

    slot = %Slot{
      pool: pool.name,
      number: number,
      owner: owner,
      address: server.address,
      started: Connection.now(),
      limits: Slot.limits(own)
    }

    Process.monitor(owner)
    struct!(slot, fields)
  end

  defp options(%{pool: pool, options: options, template: template, address: address}) do
    server = self()

    fn ->
      options = options.()
      set_up = options[:setup]

      setup = fn connection ->
        result = set_up.(connection)
        if pool.commands == %{}, do: describe(server, connection)
        :ok = Journal.join(pool.journal, connection)
        result
      end

      options |> Keyword.put(:setup, setup) |> connected(template, address)
    end
  end

  defp describe(server, connection) do
    described = Bridge.call!(connection, :describe, %{}, @describe_timeout)
    :ok = GenServer.call(server, {:commands, Pool.commands(described)}, :infinity)
  end

  # Without a template each worker is started, or connected to, as a bridge does it.
  defp connected(options, nil, _address), do: options

  defp connected(options, template, address) do
    # The template's workers lead process groups, like those of ports.
    kill = fn os_pid -> WorkerPort.kill(%{os_pid: os_pid}) end
    ended = fn os_pid, error -> Template.explained(template, os_pid, error) end
    Keyword.merge(options, connect: address, kill: kill, ended: ended)
  end
end
