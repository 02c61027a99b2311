defmodule BeamNodes do
  @moduledoc """
  Starts nodes of the BEAM on loopback, each a process of the operating system, and stops, freezes and
  kills them.

  They are controlled through their standard input and output (`:peer`), not through their distribution,
  so one that is cut off from the others can still be asked. `FileEpmd` stands in for epmd: a folder for
  each group of nodes. A node ends with the process that started it, and is killed with this BEAM.
  """

  defstruct [:name, :node, :peer, :os_pid, :folder]

  @doc "Returns a new folder for the files of a group of nodes."
  def folder do
    path =
      Path.join(
        System.tmp_dir!(),
        "beam-nodes-#{System.pid()}-#{System.unique_integer([:positive])}"
      )

    File.mkdir_p!(path)
    path
  end

  @doc """
  Starts a node, linked to the calling process. `arguments` are further ones of `erl`.

  The nodes of a folder know each other's cookie, but are not connected.
  """
  def start_link(folder, name, arguments \\ []) do
    {program, prefix} = erl()

    {:ok, peer, node} =
      :peer.start_link(%{
        name: String.to_atom(name),
        host: ~c"127.0.0.1",
        longnames: true,
        connection: :standard_io,
        shutdown: :close,
        exec: {program, prefix},
        env: [{~c"BEAM_NODES", to_charlist(folder)}, {~c"BEAM_NODE", to_charlist(name)}],
        args: Enum.map(distribution(folder) ++ quiet() ++ paths() ++ arguments, &to_charlist/1)
      })

    {:ok, _} = :peer.call(peer, :application, :ensure_all_started, [:dspex_bridge])
    os_pid = peer |> :peer.call(:os, :getpid, []) |> to_string()
    %__MODULE__{name: name, node: node, peer: peer, os_pid: os_pid, folder: folder}
  end

  # A frozen process does not notice the end of its standard input.
  defp erl do
    erl = to_charlist(System.find_executable("erl"))

    case System.find_executable("setpriv") do
      nil -> {erl, []}
      setpriv -> {to_charlist(setpriv), [~c"--pdeathsig", ~c"KILL", erl]}
    end
  end

  defp distribution(folder) do
    ~w(-start_epmd false -epmd_module Elixir.FileEpmd -setcookie) ++
      [Path.basename(folder)] ++ ~w(-kernel inet_dist_use_interface {127,0,0,1})
  end

  defp quiet, do: ~w(-kernel logger_level critical -logger level critical)

  defp paths do
    for path <- :code.get_path(), File.dir?(path), part <- ["-pa", Path.expand(path)], do: part
  end

  @doc "Calls a function on a node, whether it is connected to others or not."
  def call(node, module, function, arguments, timeout \\ 30_000) do
    :peer.call(node.peer, module, function, arguments, timeout)
  end

  @doc "Connects nodes with each other."
  def connect(nodes) do
    for one <- nodes, other <- nodes, one.name < other.name do
      true = call(one, :net_kernel, :connect_node, [other.node])
    end

    :ok
  end

  @doc "Sends a signal to a node: `:KILL`, `:STOP`, `:CONT`. One that has ended is left as it is."
  def signal(node, signal) do
    System.cmd("kill", ["-#{signal}", node.os_pid], stderr_to_stdout: true)
    :ok
  end
end
