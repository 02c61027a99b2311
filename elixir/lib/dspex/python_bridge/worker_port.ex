defmodule DSPex.PythonBridge.WorkerPort do
  @moduledoc """
  Starts and kills a worker's operating system process.
  """

  alias DSPex.PythonBridge.{Exits, Stderr}

  # Low and high limit, in bytes, of the port's output queue; above the high limit the port is
  # busy. The default, 8 KiB, is less than one request.
  @busy_limits {4 * 1024 * 1024, 8 * 1024 * 1024}

  # Opens the file as stderr, unlinks it, and executes the worker with the same process id and
  # group.
  @with_stderr ~S(exec 2>>"$1"; rm -f "$1"; shift; exec "$@")

  @enforce_keys [:port, :os_pid, :stderr]
  defstruct @enforce_keys

  @typedoc "A worker: its port, its process id if known, and the reader of its stderr."
  @type t :: %__MODULE__{port: port(), os_pid: pos_integer() | nil, stderr: Stderr.t() | nil}

  @doc """
  Starts a worker with the options of `DSPex.PythonBridge.Bridge.start_link/1`. The calling
  process becomes the owner of the port.
  """
  @spec open(Path.t(), keyword()) :: {:ok, t()} | {:error, String.t()}
  def open(python, options) do
    shell = System.find_executable("sh")

    stderr =
      case shell && Stderr.open() do
        {:ok, stderr} -> stderr
        _ -> nil
      end

    {program, arguments} = command(shell, stderr, python, arguments(options))

    port =
      Port.open({:spawn_executable, program}, [
        :binary,
        :exit_status,
        :hide,
        {:packet, 4},
        {:busy_limits_port, @busy_limits},
        {:busy_limits_msgq, :disabled},
        {:args, arguments},
        {:env, environment(options[:env] || [])}
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid) || {:os_pid, nil}
    {:ok, %__MODULE__{port: port, os_pid: os_pid, stderr: stderr}}
  rescue
    error in ErlangError -> {:error, "#{python}: #{Exits.line(:error, error, [])}"}
  end

  defp command(_shell, nil, python, arguments), do: {python, arguments}

  defp command(shell, {_reader, path}, python, arguments) do
    {shell, ["-c", @with_stderr, "sh", path, python | arguments]}
  end

  @doc "Kills a worker and its children, which are in the process group that it leads."
  @spec kill(pos_integer() | nil) :: :ok
  def kill(nil), do: :ok

  def kill(os_pid) do
    # The shell's builtin kill: small container images have no other.
    :os.cmd(~c"kill -9 -#{os_pid} #{os_pid} 2>/dev/null")
    :ok
  end

  # -P keeps Python from importing modules from the current directory.
  defp arguments(options) do
    ["-P", "-m", "bridge", "worker", "--adapter", options[:adapter]] ++
      flag("--max-frame", options[:max_frame]) ++
      flag("--threads", options[:threads]) ++ stuck(options[:stuck_after]) ++ options[:args]
  end

  defp stuck(false), do: []
  defp stuck(ms), do: ["--when-stuck", "exit", "--stuck-after", to_string(ms / 1000)]

  defp flag(_name, nil), do: []
  defp flag(name, value), do: [name, to_string(value)]

  defp environment(variables) when is_function(variables, 0), do: environment(variables.())

  defp environment(variables) do
    for {name, value} <- variables do
      {to_charlist(to_string(name)), if(value, do: to_charlist(value), else: false)}
    end
  end
end
