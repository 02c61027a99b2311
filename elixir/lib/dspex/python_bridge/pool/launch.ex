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
  `{:started, owner, connection}`, before that the call `{:described, about}` unless the worker is that
  of one session, and the `:DOWN` of the owner.
  """
  @spec start(map(), pos_integer(), keyword()) :: Slot.t()
  def start(%{pool: pool, own: own} = server, number, fields) do
    worker = %{
      name: {pool.name, number},
      counters: Statistics.for_name(pool.name),
      functions: pool.functions
    }

    spec = %{
      id: number,
      start: {Owner, :start_link, [worker, options(server, fields[:session]), self()]},
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
    send(owner, :monitored)
    struct!(slot, fields)
  end

  # The owner asks for its options when it starts. If it ended before it is monitored, nobody would
  # learn the reason.
  defp options(%{pool: pool, options: options, template: template, address: address}, session) do
    server = self()

    fn ->
      receive do: (:monitored -> :ok)
      options = options.()
      set_up = options[:setup]

      setup = fn connection ->
        result = set_up.(connection)
        if session == nil, do: describe(server, connection)
        :ok = Journal.join(pool.journal, connection)
        result
      end

      options |> Keyword.put(:setup, setup) |> connected(template, address)
    end
  end

  defp describe(server, connection) do
    described = Bridge.call!(connection, :describe, %{}, @describe_timeout)
    %{"mode" => mode} = Bridge.call!(connection, :ping, %{}, @describe_timeout)
    default = if mode == "pool-worker", do: "anonymous", else: "default"
    about = %{commands: Pool.commands(described), default_session: default}
    :ok = GenServer.call(server, {:described, about}, :infinity)
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
