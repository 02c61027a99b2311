defmodule DSPex.PythonBridge.WorkerSocket do
  @moduledoc """
  Connects to a worker that waits at a Unix socket, for instance that of `dspex-bridge serve`.
  Each connection is a worker of its own, which ends with the connection.

  ## Frames stay whole

  Many processes send on one socket. The socket's driver takes a frame as a whole: it writes what
  the kernel accepts and queues the rest, before it takes the next one. Its limit for that queue
  (`:high_watermark`) is set out of reach, because at the limit it would keep its caller waiting
  for longer than the caller's deadline, and then report a frame as not sent that it still sends.
  Instead, `send/2` looks at the length of the queue first. So a frame is cut only by the end of
  the connection, and every `:busy` frame is one of which nothing was sent.
  """

  @behaviour DSPex.PythonBridge.Transport

  alias DSPex.PythonBridge.{Connection, Text}

  @prefix "unix:"
  # sun_path of Linux has 108 bytes, with the zero at the end.
  @longest_path 107
  # Unsent bytes above which the worker counts as one that does not read; as for a port.
  @busy_limit 8 * 1024 * 1024
  # The maximum of the driver's options.
  @unlimited 0x7FFFFFFF
  # Bytes of one read, unless the frame is longer.
  @buffer 64 * 1024
  # Pause between two attempts to connect to a server that has many connections to accept, ms.
  @pause 5

  @enforce_keys [:port, :address, :max_frame, :kill, :ended]
  defstruct @enforce_keys ++ [:os_pid]

  @type t :: %__MODULE__{
          port: :gen_tcp.socket(),
          address: String.t(),
          max_frame: pos_integer(),
          kill: (pos_integer() | nil -> term()),
          ended:
            (pos_integer() | nil, DSPex.PythonBridge.Error.t() ->
               DSPex.PythonBridge.Error.t()),
          os_pid: pos_integer() | nil
        }

  @impl true
  def open(options) do
    address = options[:connect]

    with {:ok, path} <- path(address),
         deadline = Connection.now() + options[:start_timeout],
         {:ok, socket} <- connect(path, options[:max_frame], deadline) do
      worker = %__MODULE__{
        port: socket,
        address: Text.line(address),
        max_frame: options[:max_frame],
        kill: options[:kill],
        ended: options[:ended]
      }

      {:ok, worker}
    end
  end

  defp path(@prefix <> path = address) do
    cond do
      path == "" ->
        {:error, "#{inspect(address)} has no path; an address looks like unix:/run/bridge.sock"}

      byte_size(path) > @longest_path ->
        {:error,
         "the path of a socket has at most #{@longest_path} bytes, not #{byte_size(path)}: " <>
           Text.line(path)}

      true ->
        {:ok, path}
    end
  end

  defp path(address) do
    {:error, "#{inspect(address)} is not an address like unix:/run/bridge.sock"}
  end

  defp connect(path, max_frame, deadline) do
    options = [
      :binary,
      active: false,
      packet: 4,
      packet_size: max_frame,
      buffer: @buffer,
      high_watermark: @unlimited,
      high_msgq_watermark: @unlimited
    ]

    with {:ok, socket} <- :gen_tcp.connect({:local, path}, 0, options),
         {:ok, _path} <- connected(socket),
         :ok <- :inet.setopts(socket, active: true) do
      {:ok, socket}
    else
      {:error, :busy} ->
        if Connection.remaining(deadline) == 0 do
          {:error, "the server at #{Text.line(path)} does not accept connections"}
        else
          Process.sleep(@pause)
          connect(path, max_frame, deadline)
        end

      {:error, reason} ->
        {:error, refused(reason, path)}
    end
  end

  # While the kernel's queue for the listener is full, it refuses a connection with EAGAIN, which
  # the driver takes for a connection in progress and then for a complete one.
  defp connected(socket) do
    with {:error, _reason} <- :inet.peername(socket) do
      :gen_tcp.close(socket)
      {:error, :busy}
    end
  end

  defp refused(:enoent, path) do
    shown = Text.line(path)
    "there is no socket at #{shown}. Start a server:   dspex-bridge serve --listen unix:#{shown}"
  end

  defp refused(:eacces, path), do: "no permission to connect to #{Text.line(path)}"
  defp refused(:eprototype, path), do: "#{Text.line(path)} is not a stream socket"

  defp refused(:econnrefused, path) do
    case File.stat(path) do
      {:ok, %{type: :directory}} -> "#{Text.line(path)} is a directory, not a socket"
      {:ok, %{type: :other}} -> "no server listens at #{Text.line(path)}"
      _ -> "#{Text.line(path)} is not a socket"
    end
  end

  defp refused(reason, path) do
    "cannot connect to #{Text.line(path)}: #{:inet.format_error(reason)}"
  end

  @impl true
  def send(socket, frame) do
    case Port.info(socket, :queue_size) do
      {:queue_size, unsent} when unsent < @busy_limit ->
        if :gen_tcp.send(socket, frame) == :ok, do: :ok, else: :closed

      {:queue_size, _unsent} ->
        :busy

      nil ->
        :closed
    end
  end

  @impl true
  def received(%{port: socket}, {:tcp, socket, frame}), do: frame
  def received(%{port: socket}, {:tcp_closed, socket}), do: {:ended, :closed}
  def received(%{port: socket}, {:tcp_error, socket, reason}), do: {:broken, reason}
  def received(%{port: socket}, {:EXIT, socket, reason}), do: {:broken, reason}
  def received(_worker, _message), do: :other

  # A worker that reads notices the end of its connection. `os_pid` may be the number of a process in
  # another container, so only the code that has started the worker may do more.
  @impl true
  def kill(%{port: socket} = worker) do
    close(socket)
    worker.kill.(worker.os_pid)
    :ok
  end

  # `:gen_tcp.close/1` would wait for the worker to read what was sent.
  defp close(socket) do
    Port.close(socket)
  rescue
    ArgumentError -> true
  end

  @impl true
  def reason(worker, :starting, :closed) do
    {"what listens at #{worker.address} has closed the connection", %{}}
  end

  def reason(worker, :running, :closed) do
    {"the worker has ended, or closed its connection (#{worker.address})", %{}}
  end

  # The first four bytes of any other protocol are a length, too: of "HTTP", 1.2 GB.
  def reason(worker, phase, :emsgsize) do
    sender =
      if phase == :starting,
        do: "what listens at #{worker.address} is not a worker: it",
        else: "the worker"

    line = "#{sender} sent a frame of more than #{worker.max_frame} bytes (option :max_frame)"
    {line, %{"limit" => worker.max_frame}}
  end

  def reason(worker, _phase, reason) do
    line = "the connection to #{worker.address} has failed: #{inspect(reason)}"
    {line, %{"reason" => inspect(reason)}}
  end

  @impl true
  def explained(worker, error), do: worker.ended.(worker.os_pid, error)
end
