defmodule DSPex.PythonBridge.Python do
  @moduledoc """
  Finds the Python interpreter of the worker, and says what is wrong with one that does not work.

  Looked at in this order; the first that is set or there is used:

    1. the `:python` option
    2. `config :dspex_bridge, python: "/path/to/python"`
    3. the environment variable `BRIDGE_PYTHON`
    4. a virtual environment: `VIRTUAL_ENV`, then `.venv` and `venv` below the current directory
       and below `RELEASE_ROOT`
    5. `python3`, then `python`, on `PATH`
  """

  alias DSPex.PythonBridge.{Exits, Text}

  @minimum {3, 11}
  # For the import of DSPy on a cold disk, ms.
  @timeout 60_000

  @doc """
  The absolute path of the interpreter, and where it was found.

  A path that is named (1 to 3) but not there is an error, not a reason to look further.
  """
  @spec find(String.t() | nil) :: {:ok, Path.t(), String.t()} | {:error, String.t()}
  def find(option \\ nil) do
    named = [
      {option, "the :python option"},
      {Application.get_env(:dspex_bridge, :python), "config :dspex_bridge, python:"},
      {System.get_env("BRIDGE_PYTHON"), "BRIDGE_PYTHON"}
    ]

    case Enum.find(named, fn {path, _} -> path not in [nil, ""] end) do
      {path, from} -> named(path, from)
      nil -> search()
    end
  end

  @doc """
  The versions of an interpreter and of the package in it, or a line that says what is missing and
  what to type. Starts the interpreter, which takes some hundred milliseconds.
  """
  @spec check(Path.t()) ::
          {:ok, python :: String.t(), package :: String.t()} | {:error, String.t()}
  def check(python) do
    with {:ok, version} <- version(python),
         {:ok, package} <- package(python) do
      {:ok, version, package}
    end
  end

  defp version(python) do
    with {:ok, version} <-
           run(python, ["-c", "import platform; print(platform.python_version())"]) do
      case Regex.run(~r/^(\d+)\.(\d+)\./, version) do
        [_, major, minor] ->
          if {String.to_integer(major), String.to_integer(minor)} >= @minimum,
            do: {:ok, version},
            else: {:error, "#{python} is Python #{version}; the bridge needs 3.11 or newer"}

        nil ->
          {:error, "#{python} does not answer as a Python: #{inspect(version)}"}
      end
    end
  end

  # -P: nothing from the current directory is imported, as in the worker.
  defp package(python) do
    case run(python, ["-P", "-c", "import bridge; print(bridge.__version__)"]) do
      {:ok, version} ->
        {:ok, version}

      {:error, reason} ->
        if reason =~ "No module named 'bridge'" do
          {:error, "the Python package is missing: type   #{python} -m pip install dspex-bridge"}
        else
          {:error, "the Python package does not import: #{reason}"}
        end
    end
  end

  @doc """
  Imports DSPy and returns its version, or a line that says why that fails.
  """
  @spec dspy(Path.t()) :: {:ok, String.t()} | {:error, String.t()}
  def dspy(python) do
    case run(python, ["-P", "-c", "import dspy; print(dspy.__version__)"]) do
      {:ok, version} ->
        {:ok, version}

      {:error, reason} ->
        if reason =~ "No module named 'dspy'" do
          {:error, "DSPy is missing: type   #{python} -m pip install dspy-ai"}
        else
          {:error, "DSPy does not import: #{reason}"}
        end
    end
  end

  # The last line of what it prints, or what it raises. In a process of its own, so that an
  # interpreter that hangs is not waited for.
  defp run(python, arguments) do
    task = Task.async(fn -> output(python, arguments) end)

    case Task.yield(task, @timeout) || Task.shutdown(task, :brutal_kill) do
      {:ok, result} -> result
      _ -> {:error, "#{python} did not answer within #{div(@timeout, 1_000)} s"}
    end
  end

  defp output(python, arguments) do
    {output, status} = System.cmd(python, arguments, stderr_to_stdout: true)

    if status == 0,
      do: {:ok, Text.last_line(output)},
      else: {:error, "#{python} ended with #{status}: #{reason(output)}"}
  rescue
    error in ErlangError -> {:error, "#{python}: #{Exits.line(:error, error, [])}"}
  end

  defp reason(output) do
    if output =~ "Traceback (", do: Text.raised(output), else: Text.last_line(output)
  end

  defp named(path, from) do
    case executable(path) do
      nil -> {:error, "no Python at #{path}, which #{from} names"}
      path -> {:ok, path, from}
    end
  end

  defp search do
    environments =
      [System.get_env("VIRTUAL_ENV")] ++
        for root <- [".", System.get_env("RELEASE_ROOT")],
            root != nil,
            name <- [".venv", "venv"],
            do: Path.join(root, name)

    candidates =
      for(environment <- environments, environment, do: Path.join(environment, "bin/python")) ++
        ["python3", "python"]

    case Enum.find_value(candidates, &found/1) do
      nil ->
        {:error,
         "no Python found. Looked at the :python option, config :dspex_bridge, python:, " <>
           "BRIDGE_PYTHON, #{Enum.join(candidates, ", ")} (PATH). " <>
           "Type   python3 -m venv .venv && .venv/bin/pip install dspex-bridge"}

      found ->
        found
    end
  end

  defp found(candidate) do
    case executable(candidate) do
      nil -> nil
      path when candidate in ["python3", "python"] -> {:ok, path, "PATH"}
      path -> {:ok, path, "a virtual environment"}
    end
  end

  # A bare name is looked for on PATH, anything else from the current directory. Links are not
  # followed: a virtual environment is one, and the interpreter finds it by its name.
  defp executable(name) do
    path = if Path.basename(name) == name, do: name, else: Path.expand(name)
    System.find_executable(path)
  end
end
