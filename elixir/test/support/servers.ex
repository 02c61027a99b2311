defmodule Servers do
  @moduledoc "Runs `python -m bridge serve` for tests. A server ends with its process here."

  use GenServer
  alias DSPex.PythonBridge.Python

  @doc "Returns a path for a socket, at which there is nothing."
  def path do
    Path.join(System.tmp_dir!(), "bridge-#{System.pid()}-#{System.unique_integer([:positive])}")
  end

  @doc """
  Starts a server for one test. Returns its `:address`, its `:os_pid`, and the `:process` here.
  """
  def start_server(flags, path \\ path()) do
    process = ExUnit.Callbacks.start_supervised!({__MODULE__, {path, flags, %{}}}, id: path)
    Map.put(GenServer.call(process, :ready, 30_000), :process, process)
  end

  @doc "Returns the address of a server that all tests share, and starts it if necessary."
  def shared(flags, env) do
    name = {:global, {__MODULE__, flags, env}}
    GenServer.start(__MODULE__, {path(), flags, env}, name: name)
    GenServer.call(name, :ready, 30_000).address
  end

  def start_link(arguments), do: GenServer.start_link(__MODULE__, arguments)

  @impl true
  def init({path, flags, env}) do
    {:ok, python, _} = Python.find()
    serve = ["-P", "-m", "bridge", "serve", "--listen", "unix:#{path}", "--control", "etf"]

    port =
      Port.open({:spawn_executable, python}, [
        :binary,
        :exit_status,
        packet: 4,
        args: serve ++ flags,
        env: for({name, value} <- env, do: {~c"#{name}", ~c"#{value}"})
      ])

    {:ok, port, {:continue, :ready}}
  end

  @impl true
  def handle_continue(:ready, port) do
    receive do
      {^port, {:data, frame}} ->
        %{"type" => "ready", "listen" => address, "pid" => pid} = :erlang.binary_to_term(frame)
        {:noreply, %{address: address, os_pid: pid}}
    end
  end

  @impl true
  def handle_call(:ready, _from, ready), do: {:reply, ready, ready}

  # What the server reports about its workers, and its end.
  @impl true
  def handle_info(_message, ready), do: {:noreply, ready}
end
