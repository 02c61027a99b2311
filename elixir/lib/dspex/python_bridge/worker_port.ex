defmodule DSPex.PythonBridge.WorkerPort do
  @moduledoc """
  The worker as a process of the operating system: how it is started, and how it is killed.
  """

  # Bytes queued towards the worker before a sender finds the port busy. The default, 8 KiB, is
  # less than one request.
  @busy_limits {4 * 1024 * 1024, 8 * 1024 * 1024}

  @doc """
  Starts a worker with the options of `DSPex.PythonBridge.Bridge.start_link/1`: its port, owned by
  this process, and its id in the operating system (`nil` where it has ended already).
  """
  @spec open(Path.t(), keyword()) :: {:ok, port(), pos_integer() | nil} | {:error, String.t()}
  def open(python, options) do
    port =
      Port.open({:spawn_executable, python}, [
        :binary,
        :exit_status,
        :hide,
        {:packet, 4},
        {:busy_limits_port, @busy_limits},
        {:busy_limits_msgq, :disabled},
        {:args, arguments(options)},
        {:env, environment(options[:env] || [])}
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid) || {:os_pid, nil}
    {:ok, port, os_pid}
  rescue
    error in ErlangError -> {:error, "#{python}: #{inspect(error.original)}"}
  end

  @doc "Kills a worker. It leads its process group, so its children go too."
  @spec kill(pos_integer() | nil) :: :ok
  def kill(nil), do: :ok

  def kill(os_pid) do
    # The shell's own kill: small images have no other.
    :os.cmd(~c"kill -9 -#{os_pid} #{os_pid} 2>/dev/null")
    :ok
  end

  # -P: nothing from the current directory is imported.
  defp arguments(options) do
    ["-P", "-m", "bridge", "worker", "--adapter", options[:adapter]] ++
      flag("--max-frame", options[:max_frame]) ++
      flag("--threads", options[:threads]) ++ options[:args]
  end

  defp flag(_name, nil), do: []
  defp flag(name, value), do: [name, to_string(value)]

  defp environment(variables) do
    for {name, value} <- variables do
      {to_charlist(to_string(name)), if(value, do: to_charlist(value), else: false)}
    end
  end
end
