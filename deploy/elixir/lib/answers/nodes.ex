defmodule Answers.Nodes do
  @moduledoc """
  Connects this node to the others of the cluster: those whose addresses DNS returns for the name of a
  headless service. The cookie is that in `CLUSTER_COOKIE`, because a release would show its own on the
  command line.
  """

  use GenServer

  @interval 5_000

  @spec start_link(String.t() | nil) :: GenServer.on_start()
  def start_link(nil), do: :ignore
  def start_link(service), do: GenServer.start_link(__MODULE__, to_charlist(service))

  @impl true
  def init(service) do
    "CLUSTER_COOKIE" |> System.fetch_env!() |> String.to_atom() |> Node.set_cookie()
    {:ok, service, {:continue, :connect}}
  end

  @impl true
  def handle_continue(:connect, service), do: connect(service)

  @impl true
  def handle_info(:connect, service), do: connect(service)

  defp connect(service) do
    [name, _] = node() |> Atom.to_string() |> String.split("@")

    with {:ok, addresses} <- :inet.getaddrs(service, :inet) do
      for address <- addresses, do: Node.connect(:"#{name}@#{:inet.ntoa(address)}")
    end

    Process.send_after(self(), :connect, @interval)
    {:noreply, service}
  end
end
