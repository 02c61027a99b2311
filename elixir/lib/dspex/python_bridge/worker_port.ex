defmodule DSPex.PythonBridge.WorkerPort do
  @moduledoc """
  Starts and kills a worker's operating system process, which is at the other end of a port.
  """

  @behaviour DSPex.PythonBridge.Transport

  alias DSPex.PythonBridge.{Exits, Python, Stderr}

  # Low and high limit, in bytes, of the port's output queue; above the high limit the port is
  # busy. The default, 8 KiB, is less than one request.
  @busy_limits {4 * 1024 * 1024, 8 * 1024 * 1024}

  # Opens the file as stderr, unlinks it, and executes the worker with the same process id and
  # group.
  @with_stderr ~S(exec 2>>"$1"; rm -f "$1"; shift; exec "$@")

  @enforce_keys [:port, :os_pid, :python, :stderr]
  defstruct @enforce_keys

  @typedoc "A worker: its port, its process id if known, its interpreter, and its stderr's reader."
  @type t :: %__MODULE__{
          port: port(),
          os_pid: pos_integer() | nil,
          python: Path.t(),
          stderr: Stderr.t() | nil
        }

  @impl true
  def open(options) do
    launch(options, ["worker" | flags(options)])
  end

  @doc """
  Starts `python -m bridge` with the given arguments and with the interpreter and the environment of
  the options. Its port carries frames on stdin and stdout.
  """
  @spec launch(keyword(), [String.t()]) :: {:ok, t()} | {:error, String.t()}
  def launch(options, arguments) do
    with {:ok, python, _from} <- Python.find(options[:python]),
         do: start(python, arguments, options[:env] || [])
  end

  # -P keeps Python from importing modules from the current directory.
  defp start(python, arguments, env) do
    shell = System.find_executable("sh")

    stderr =
      case shell && Stderr.open() do
        {:ok, stderr} -> stderr
        _ -> nil
      end

    {program, arguments} = command(shell, stderr, python, ["-P", "-m", "bridge" | arguments])

    port =
      Port.open({:spawn_executable, program}, [
        :binary,
        :exit_status,
        :hide,
        {:packet, 4},
        {:busy_limits_port, @busy_limits},
        {:busy_limits_msgq, :disabled},
        {:args, arguments},
        {:env, environment(env)}
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid) || {:os_pid, nil}
    {:ok, %__MODULE__{port: port, os_pid: os_pid, python: python, stderr: stderr}}
  rescue
    error in ErlangError -> {:error, "#{python}: #{Exits.line(:error, error, [])}"}
  end

  defp command(_shell, nil, python, arguments), do: {python, arguments}

  defp command(shell, {_reader, path}, python, arguments) do
    {shell, ["-c", @with_stderr, "sh", path, python | arguments]}
  end

  @doc "Returns the flags of a worker that has the given options."
  @spec flags(keyword()) :: [String.t()]
  def flags(options) do
    ["--adapter", options[:adapter]] ++
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

  @impl true
  def send(port, frame) do
    if Port.command(port, frame, [:nosuspend]), do: :ok, else: :busy
  rescue
    ArgumentError -> :closed
  end

  @impl true
  def received(%{port: port}, {port, {:data, frame}}), do: frame
  def received(%{port: port}, {port, {:exit_status, _} = cause}), do: {:ended, cause}
  def received(%{port: port}, {:EXIT, port, reason}), do: {:broken, {:port, reason}}
  def received(_worker, _message), do: :other

  # Kills the worker's children too, which are in the process group that it leads.
  @impl true
  def kill(%{os_pid: nil}), do: :ok

  def kill(%{os_pid: os_pid}) do
    # The shell's builtin kill: small container images have no other.
    :os.cmd(~c"kill -9 -#{os_pid} #{os_pid} 2>/dev/null")
    :ok
  end

  # Runs the interpreter of a worker that did not start to see what is missing, which takes some
  # hundred milliseconds.
  @impl true
  def reason(worker, :starting, {kind, value}) do
    details = if kind == :exit_status, do: %{"exit_status" => value}, else: %{}

    case Python.check(worker.python) do
      {:error, reason} -> {reason, details}
      {:ok, _, _} -> {"it ended with status #{inspect(value)}", details}
    end
  end

  def reason(_worker, :running, {:exit_status, status}) do
    {"the worker ended with status #{status}", %{"exit_status" => status}}
  end

  def reason(_worker, :running, {:port, reason}) do
    {"the worker's port was closed: #{inspect(reason)}", %{"reason" => inspect(reason)}}
  end

  @impl true
  def explained(worker, error), do: Stderr.explained(error, worker.stderr)
end
