defmodule DSPex.PythonBridge.Python do
  @moduledoc """
  Finds the Python interpreter for the worker, and explains why an interpreter does not work.

  The first of these that is set or exists is used:

    1. the `:python` option
    2. `config :dspex_bridge, python: "/path/to/python"`
    3. the environment variable `BRIDGE_PYTHON`
    4. a virtual environment: `VIRTUAL_ENV`, then `.venv` and `venv` below the current directory
       and below `RELEASE_ROOT`
    5. `python3`, then `python`, on `PATH`
  """

  alias DSPex.PythonBridge.{Exits, Text}

  @minimum {3, 11}
  # Enough to import DSPy from a cold disk, ms.
  @timeout 60_000

  @doc """
  Returns the absolute path of the interpreter, and which setting or directory it comes from.

  A configured path (1 to 3) that does not exist is an error; the search does not continue.
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
  Returns the versions of an interpreter and of its package `dspex-bridge`, or a line that says
  what is missing and how to install it. Runs the interpreter, which takes some hundred
  milliseconds.
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
          {:error, "#{python} is not a Python interpreter: it printed #{inspect(version)}"}
      end
    end
  end

  # As in the worker, -P keeps Python from importing modules from the current directory.
  defp package(python) do
    case run(python, ["-P", "-c", "import bridge; print(bridge.__version__)"]) do
      {:ok, version} ->
        {:ok, version}

      {:error, reason} ->
        if reason =~ "No module named 'bridge'" do
          {:error, "the Python package is missing. Run   #{python} -m pip install dspex-bridge"}
        else
          {:error, "the Python package cannot be imported: #{reason}"}
        end
    end
  end

  @doc """
  Imports DSPy and returns its version, or a line that says why the import failed.
  """
  @spec dspy(Path.t()) :: {:ok, String.t()} | {:error, String.t()}
  def dspy(python) do
    case run(python, ["-P", "-c", "import dspy; print(dspy.__version__)"]) do
      {:ok, version} ->
        {:ok, version}

      {:error, reason} ->
        if reason =~ "No module named 'dspy'" do
          {:error, "DSPy is missing. Run   #{python} -m pip install dspy-ai"}
        else
          {:error, "DSPy cannot be imported: #{reason}"}
        end
    end
  end

  # Returns the last line that the interpreter prints, or the exception. A separate process limits
  # the time, in case the interpreter hangs.
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
      else: {:error, "#{python} exited with status #{status}: #{reason(output)}"}
  rescue
    error in ErlangError -> {:error, "#{python}: #{Exits.line(:error, error, [])}"}
  end

  defp reason(output) do
    if output =~ "Traceback (", do: Text.raised(output), else: Text.last_line(output)
  end

  defp named(path, from) do
    case executable(path) do
      nil -> {:error, "no Python at #{path} (from #{from})"}
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

    case Enum.find_value(candidates, &usable/1) do
      nil ->
        {:error,
         "no Python found. Searched the :python option, config :dspex_bridge, python:, " <>
           "BRIDGE_PYTHON, #{Enum.join(candidates, ", ")} (PATH). " <>
           "Run   python3 -m venv .venv && .venv/bin/pip install dspex-bridge"}

      result ->
        result
    end
  end

  defp usable(candidate) do
    case executable(candidate) do
      nil -> nil
      path when candidate in ["python3", "python"] -> {:ok, path, "PATH"}
      path -> {:ok, path, "a virtual environment"}
    end
  end

  # A bare name is searched on PATH; other paths are relative to the current directory. Links are
  # not resolved: the interpreter of a virtual environment is a link, and its path identifies the
  # environment.
  defp executable(name) do
    path = if Path.basename(name) == name, do: name, else: Path.expand(name)
    System.find_executable(path)
  end
end
