defmodule DSPex.PythonBridge.PythonTest do
  # Not async: changes the environment and the current directory.
  use ExUnit.Case, async: false

  alias DSPex.PythonBridge.Python

  @variables ~w(BRIDGE_PYTHON VIRTUAL_ENV RELEASE_ROOT PATH)

  setup do
    before = Map.new(@variables, &{&1, System.get_env(&1)})
    directory = File.cwd!()
    home = Path.join(System.tmp_dir!(), "bridge-home-#{System.unique_integer([:positive])}")
    File.mkdir_p!(home)
    System.delete_env("BRIDGE_PYTHON")
    System.delete_env("VIRTUAL_ENV")
    System.delete_env("RELEASE_ROOT")
    System.put_env("PATH", Path.join(home, "bin"))
    File.cd!(home)
    {:ok, home} = {:ok, File.cwd!()}

    on_exit(fn ->
      File.cd!(directory)
      File.rm_rf!(home)
      Application.delete_env(:dspex_bridge, :python)

      for {name, value} <- before,
          do: if(value, do: System.put_env(name, value), else: System.delete_env(name))
    end)

    {:ok, home: home}
  end

  defp interpreter(home, path) do
    path = Path.join(home, path)
    File.mkdir_p!(Path.dirname(path))
    File.write!(path, "#!/bin/sh\necho 3.9.1\n")
    File.chmod!(path, 0o755)
    path
  end

  test "the first interpreter that is configured or exists is used", %{home: home} do
    assert {:error, reason} = Python.find()

    for place <- ["BRIDGE_PYTHON", ".venv/bin/python", "pip install dspex-bridge"],
        do: assert(reason =~ place)

    on_path = interpreter(home, "bin/python3")
    assert Python.find() == {:ok, on_path, "PATH"}

    release = interpreter(home, "release/.venv/bin/python")
    System.put_env("RELEASE_ROOT", Path.join(home, "release"))
    assert {:ok, ^release, "a virtual environment"} = Python.find()

    project = interpreter(home, ".venv/bin/python")
    assert {:ok, ^project, _} = Python.find()

    active = interpreter(home, "active/bin/python")
    System.put_env("VIRTUAL_ENV", Path.join(home, "active"))
    assert {:ok, ^active, _} = Python.find()

    variable = interpreter(home, "variable")
    System.put_env("BRIDGE_PYTHON", variable)
    assert Python.find() == {:ok, variable, "BRIDGE_PYTHON"}

    configured = interpreter(home, "configured")
    Application.put_env(:dspex_bridge, :python, configured)
    assert {:ok, ^configured, "config :dspex_bridge, python:"} = Python.find()

    assert {:ok, ^on_path, "the :python option"} = Python.find("bin/python3")
  end

  test "a configured interpreter that does not exist is an error", %{home: home} do
    interpreter(home, "bin/python3")
    System.put_env("BRIDGE_PYTHON", "/no/such/python")
    assert Python.find() == {:error, "no Python at /no/such/python (from BRIDGE_PYTHON)"}
  end

  test "reports an interpreter that is too old, or a program that is not Python", %{home: home} do
    assert {:error, reason} = Python.check(interpreter(home, "old"))
    assert reason =~ "is Python 3.9.1; the bridge needs 3.11"
    File.write!(interpreter(home, "broken"), "#!/bin/sh\necho no such thing >&2\nexit 3\n")
    assert {:error, reason} = Python.check(Path.join(home, "broken"))
    assert reason =~ "exited with status 3: no such thing"
    assert {:error, _} = Python.check("/no/such/python")
  end
end
