defmodule DSPex.PythonBridge.Stderr do
  @moduledoc """
  Reads the stderr of one worker: writes each line to the stderr of the BEAM, and keeps the last
  lines for the error of a worker that ends.

  An Erlang port cannot capture stderr, so the worker writes to an unlinked temporary file that
  this process reads. Neither the worker nor its owner can be blocked by a slow reader of the
  BEAM's stderr.
  """

  use GenServer

  alias DSPex.PythonBridge.{Error, Text}

  # Time between two reads of the file, ms.
  @interval 200
  # How many lines to keep, and how many characters of each.
  @kept_lines 20
  @line_length 2_000
  # Bytes of one read, and the size at which the file is truncated.
  @chunk 65_536
  @longest 1_048_576
  # Unread bytes above which data is dropped, so that the disk does not fill up.
  @max_unread 4_194_304

  @typedoc "The reader, and the path of the file, which the worker's shell opens and removes."
  @type t :: {pid(), Path.t()}

  @doc """
  Creates the file and starts its reader, which ends with the calling process. Returns `:error` if
  the temporary directory is not writable.
  """
  @spec open() :: {:ok, t()} | :error
  def open do
    name = "dspex-#{System.pid()}-#{Base.encode32(:rand.bytes(10), padding: false)}.stderr"
    path = Path.join(System.tmp_dir!(), name)

    case GenServer.start(__MODULE__, {self(), path}) do
      {:ok, reader} -> {:ok, {reader, path}}
      :ignore -> :error
    end
  rescue
    # There is no temporary directory.
    RuntimeError -> :error
  end

  @doc "Returns the last lines of a worker that has ended, oldest first."
  @spec last_lines(t() | nil) :: [String.t()]
  def last_lines(nil), do: []

  def last_lines({reader, _path}) do
    GenServer.call(reader, :last_lines, 1_000)
  catch
    # The reader may be blocked by the BEAM's stderr.
    :exit, _ -> []
  end

  @doc """
  Adds the last lines of a worker that has ended to its error: all of them to the details as
  `"stderr"`, and the very last one to the message.
  """
  @spec explained(Error.t(), t() | nil) :: Error.t()
  def explained(error, stderr), do: with_lines(error, last_lines(stderr))

  @doc "Adds lines of a worker's stderr to its error, as `explained/2` does."
  @spec with_lines(Error.t(), [String.t()]) :: Error.t()
  def with_lines(error, []), do: error

  def with_lines(error, lines) do
    details = Map.put(error.details, "stderr", Enum.join(lines, "\n"))
    %{error | message: with_line(error.message, List.last(lines)), details: details}
  end

  defp with_line(message, line) do
    if message =~ line, do: message, else: "#{message}: #{Text.line(line)}"
  end

  @impl true
  def init({owner, path}) do
    with {:ok, file} <- :file.open(path, [:read, :write, :exclusive, :raw, :binary]),
         :ok <- File.chmod(path, 0o600) do
      Process.monitor(owner)
      schedule()
      {:ok, %{path: path, file: file, offset: 0, rest: "", lines: []}}
    else
      {:error, _} -> :ignore
    end
  end

  @impl true
  def handle_call(:last_lines, _from, state) do
    # The file still has its name if the worker's shell did not get as far as opening it.
    File.rm(state.path)
    state = state |> read() |> line_ends()
    {:reply, Enum.reverse(state.lines), state}
  end

  @impl true
  def handle_info(:read, state) do
    schedule()
    {:noreply, read(state)}
  end

  def handle_info({:DOWN, _, _, _, _}, state) do
    File.rm(state.path)
    state |> read() |> line_ends()
    {:stop, :normal, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp schedule, do: Process.send_after(self(), :read, @interval)

  # Reads up to the current end of the file only: the worker may write faster than this process
  # reads.
  defp read(state) do
    {:ok, size} = :file.position(state.file, :eof)

    cond do
      size - state.offset > @max_unread -> dropped(state, size)
      size > state.offset -> read(state, size)
      state.offset > @longest -> emptied(state)
      true -> state
    end
  end

  defp read(%{offset: offset} = state, size) when offset >= size, do: state

  defp read(state, size) do
    {:ok, data} = :file.pread(state.file, state.offset, min(@chunk, size - state.offset))
    read(taken(state, data), size)
  end

  # Keeps the end of the data, which may say why the worker ended.
  defp dropped(state, size) do
    lost = size - @chunk - state.offset
    state = line("(#{lost} bytes of the worker's stderr were dropped)", line_ends(state))
    emptied(read(%{state | offset: size - @chunk}, size))
  end

  defp taken(state, data) do
    {lines, [rest]} = (state.rest <> data) |> String.split("\n") |> Enum.split(-1)
    state = Enum.reduce(lines, state, &line/2)
    state = %{state | offset: state.offset + byte_size(data), rest: rest}
    if byte_size(rest) > @chunk, do: line_ends(state), else: state
  end

  # The worker opened the file for appending, so it continues at the start of the truncated file.
  defp emptied(state) do
    {:ok, 0} = :file.position(state.file, 0)
    :ok = :file.truncate(state.file)
    %{state | offset: 0}
  end

  defp line_ends(%{rest: ""} = state), do: state
  defp line_ends(state), do: line(state.rest, %{state | rest: ""})

  defp line(line, state) do
    line = line |> Text.valid() |> String.trim_trailing("\r")
    pass_on(line)
    shortened = String.slice(line, 0, @line_length)
    %{state | lines: Enum.take([shortened | state.lines], @kept_lines)}
  end

  defp pass_on(line) do
    IO.puts(:stderr, line)
  rescue
    # The BEAM's stderr may be closed.
    _ in [ErlangError, ArgumentError] -> :ok
  end
end
