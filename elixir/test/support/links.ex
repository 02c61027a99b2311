defmodule Links do
  @moduledoc """
  The connections between nodes started by `BeamNodes`, which tests cut, hold up and restore.

  A link carries the connections that one node makes to another. `cut` closes them and refuses new ones,
  as when a machine is gone; `hold` lets nothing pass, as when its packets are dropped: neither end
  notices until it waits for an answer. After `restore`, what was held up arrives.
  """

  use GenServer

  @doc "Puts links between all nodes of these names, started or not. The caller's end ends them."
  def start_link(folder, names) do
    for from <- names, to <- names, from != to, into: %{} do
      {:ok, link} = GenServer.start_link(__MODULE__, {folder, from, to})
      {{from, to}, link}
    end
  end

  def cut(links, some, others), do: set(links, some, others, :cut)
  def hold(links, some, others), do: set(links, some, others, :held)
  def restore(links, some, others), do: set(links, some, others, :open)

  defp set(links, some, others, state) do
    between =
      for one <- some,
          other <- others,
          one != other,
          pair <- [{one, other}, {other, one}],
          do: pair

    for pair <- between, do: :ok = GenServer.call(links[pair], state)
    :ok
  end

  @impl true
  def init({folder, from, to}) do
    Process.flag(:trap_exit, true)
    options = [:binary, active: false, reuseaddr: true, ip: {127, 0, 0, 1}, backlog: 64]
    {:ok, listener} = :gen_tcp.listen(0, options)
    {:ok, port} = :inet.port(listener)
    File.write!(Path.join(folder, "#{from}-#{to}"), "#{port}")
    link = self()
    spawn_link(fn -> accept(listener, link) end)
    {:ok, %{to: Path.join(folder, to), state: :open, pumps: MapSet.new()}}
  end

  @impl true
  def handle_call(new, _from, state) do
    for pump <- state.pumps do
      case {state.state, new} do
        {_, :cut} -> Process.exit(pump, :kill)
        {:open, :held} -> :erlang.suspend_process(pump)
        {:held, :open} -> :erlang.resume_process(pump)
        _ -> :ok
      end
    end

    {:reply, :ok, %{state | state: new}}
  end

  @impl true
  def handle_info({:accepted, socket}, %{state: :cut} = state) do
    :gen_tcp.close(socket)
    {:noreply, state}
  end

  def handle_info({:accepted, socket}, state) do
    with {:ok, port} <- File.read(state.to),
         options = [:binary, active: false, nodelay: true],
         {:ok, other} <- :gen_tcp.connect({127, 0, 0, 1}, String.to_integer(port), options, 1_000) do
      pumps = [pump(socket, other), pump(other, socket)]
      for pump <- pumps, state.state == :held, do: :erlang.suspend_process(pump)
      for pump <- pumps, do: send(pump, :start)
      {:noreply, %{state | pumps: MapSet.union(state.pumps, MapSet.new(pumps))}}
    else
      {:error, _} ->
        :gen_tcp.close(socket)
        {:noreply, state}
    end
  end

  def handle_info({:EXIT, pump, _reason}, state) do
    {:noreply, %{state | pumps: MapSet.delete(state.pumps, pump)}}
  end

  # Until the link ends, and its listener with it.
  defp accept(listener, link) do
    with {:ok, socket} <- :gen_tcp.accept(listener) do
      :inet.setopts(socket, nodelay: true)
      :ok = :gen_tcp.controlling_process(socket, link)
      send(link, {:accepted, socket})
      accept(listener, link)
    end
  end

  # The end of one closes its socket, and so ends the other.
  defp pump(from, to) do
    pump = spawn_link(fn -> receive(do: (:start -> pass(from, to))) end)
    :ok = :gen_tcp.controlling_process(from, pump)
    pump
  end

  defp pass(from, to) do
    with {:ok, data} <- :gen_tcp.recv(from, 0), :ok <- :gen_tcp.send(to, data), do: pass(from, to)
  end
end
