defmodule DSPex.PythonBridge.Stderr do
  @moduledoc """
  Reads the stderr of one worker: passes each line on to the stderr of the BEAM, and remembers the
  last ones for the error of a worker that ends.

  A port has no stderr of its own, so the worker writes into a file without a name, which this
  process reads: a worker never waits for whoever reads its stderr, nor does the worker's owner.
  """

  use GenServer

  alias DSPex.PythonBridge.{Error, Text}

  # How often the file is looked at, ms.
  @interval 200
  # Lines that are remembered, and bytes of them.
  @remembered 20
  @line_length 2_000
  # Bytes of one read, and after which the file is emptied.
  @chunk 65_536
  @longest 1_048_576
  # Bytes that the reader may be behind. What is more is dropped, so that the disk does not fill.
  @behind 4_194_304

  @typedoc "The reader, and the path at which the worker's shell finds the file and removes it."
  @type t :: {pid(), Path.t()}

  @doc """
  Makes the file and its reader, which ends with the calling process. `:error` where the temporary
  directory cannot be written.
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
    # It may wait for a stderr of the BEAM that nobody reads.
    :exit, _ -> []
  end

  @doc """
  Adds the last lines of a worker that has ended to its error: all of them to the details as
  `"stderr"`, the very last one to the message.
  """
  @spec explained(Error.t(), t() | nil) :: Error.t()
  def explained(error, stderr) do
    case last_lines(stderr) do
      [] ->
        error

      lines ->
        details = Map.put(error.details, "stderr", Enum.join(lines, "\n"))
        %{error | message: with_line(error.message, List.last(lines)), details: details}
    end
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
    # There still where the worker's shell did not get as far as opening it.
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

  # To where the file ends now, since the worker may write faster than anybody reads.
  defp read(state) do
    {:ok, size} = :file.position(state.file, :eof)

    cond do
      size - state.offset > @behind -> dropped(state, size)
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

  # But for the end of it, which may say why the worker ended.
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

  # The worker appends, so it goes on at the beginning.
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
    kept = String.slice(line, 0, @line_length)
    %{state | lines: Enum.take([kept | state.lines], @remembered)}
  end

  defp pass_on(line) do
    IO.puts(:stderr, line)
  rescue
    # The BEAM's stderr may be closed.
    _ in [ErlangError, ArgumentError] -> :ok
  end
end
