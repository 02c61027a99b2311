defmodule FileEpmd do
  @moduledoc """
  In place of epmd, for nodes started by `BeamNodes`: each writes the port at which it listens to a file
  of its name, so runs with folders of their own do not meet. Where there is a file `from-to`, which
  `Links` writes, the node `from` connects to the port in that one.
  """

  @version 6

  def start_link, do: :ignore
  def listen_port_please(_name, _host), do: {:ok, 0}

  def register_node(name, port, _family \\ :inet) do
    # Raw, because a node registers before it has a file server.
    :ok = :file.write_file(path(name), "#{port}", [:raw])
    {:ok, :rand.uniform(3)}
  end

  def address_please(name, _host, _family) do
    with {:ok, port} <- port(name), do: {:ok, {127, 0, 0, 1}, port, @version}
  end

  def port_please(name, _host, _timeout \\ :infinity) do
    case port(name) do
      {:ok, port} -> {:port, port, @version}
      {:error, _} -> :noport
    end
  end

  def names(_host), do: {:error, :address}

  defp port(name) do
    with {:error, _} <- :file.read_file(path("#{System.get_env("BEAM_NODE")}-#{name}")),
         {:error, reason} <- :file.read_file(path(name)) do
      {:error, reason}
    else
      {:ok, text} -> {:ok, String.to_integer(text)}
    end
  end

  defp path(name), do: Path.join(System.fetch_env!("BEAM_NODES"), to_string(name))
end
