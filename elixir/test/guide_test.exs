defmodule DSPex.GuideTest do
  # Runs the guide's examples in a project created with `mix new`.
  use ExUnit.Case, async: true

  @root File.cwd!()
  @moduletag timeout: 120_000

  defp blocks(language) do
    guide = File.read!(Path.join(@root, "guides/getting_started.md"))
    Regex.scan(~r/^```#{language}\n(.*?)^```/ms, guide, capture: :all_but_first) |> List.flatten()
  end

  test "from mix new to a streamed answer that used a tool" do
    directory = Path.join(System.tmp_dir!(), "bridge-guide-#{System.unique_integer([:positive])}")
    File.mkdir_p!(directory)
    on_exit(fn -> File.rm_rf!(directory) end)
    project = Path.join(directory, "weather")
    {_, 0} = mix(["new", "weather"], directory)

    [deps, example, setup, capture, pool, config, optimize | _] = blocks("elixir")
    assert deps =~ "{:dspex_bridge, "
    mix_exs = Path.join(project, "mix.exs")
    with_dependency = "deps: [{:dspex_bridge, path: #{inspect(@root)}}]"
    File.write!(mix_exs, File.read!(mix_exs) |> String.replace("deps: deps()", with_dependency))

    File.write!(
      Path.join(project, "example.exs"),
      Enum.join([example, optimize, capture], "Bridge.stop()\n") <>
        setup <> restart() <> pool <> adapter()
    )

    File.mkdir_p!(Path.join(project, "config"))
    File.write!(Path.join(project, "config/config.exs"), "import Config\n" <> config)

    {output, status} = mix(["run", "example.exs"], project)
    assert status == 0, output
    for shown <- blocks("text"), do: assert(output =~ shown)
    assert output =~ "restarted: ok\n"
    assert output =~ "adapter: Paris\n"

    {output, status} = mix(["bridge.doctor"], project)
    assert status == 0, output
    assert output =~ "from BRIDGE_PYTHON"
    assert output =~ "a worker starts and answers"

    assert output =~ ~r/ok      DSPy \d+\./

    broken = Path.join(directory, "broken/dspy")
    File.mkdir_p!(broken)

    File.write!(
      Path.join(broken, "__init__.py"),
      "raise ImportError('libmissing.so\\nsee the manual')"
    )

    {output, status} = mix(["bridge.doctor"], project, [{"PYTHONPATH", Path.dirname(broken)}])
    assert status == 1

    assert output =~
             ~r/missing DSPy cannot be imported: .*exited with status 1: ImportError: libmissing.so/

    {output, status} = mix(["bridge.doctor", "--python", "/no/such/python"], project)
    assert status == 1
    assert output =~ "missing no Python at /no/such/python"
  end

  test "the tests of an application, without Python" do
    directory = Path.join(System.tmp_dir!(), "bridge-guide-#{System.unique_integer([:positive])}")
    File.mkdir_p!(directory)
    on_exit(fn -> File.rm_rf!(directory) end)
    project = Path.join(directory, "weather")
    {_, 0} = mix(["new", "weather"], directory)
    mix_exs = Path.join(project, "mix.exs")
    with_dependency = "deps: [{:dspex_bridge, path: #{inspect(@root)}}]"
    File.write!(mix_exs, File.read!(mix_exs) |> String.replace("deps: deps()", with_dependency))

    [module, test | _] = Enum.filter(blocks("elixir"), &(&1 =~ "defmodule Weather.Answers"))
    File.write!(Path.join(project, "lib/answers.ex"), module)
    File.write!(Path.join(project, "test/answers_test.exs"), test)

    without_python = [{"BRIDGE_PYTHON", "/no/python"}, {"MIX_ENV", "test"}]
    {output, status} = mix(["test", "test/answers_test.exs"], project, without_python)
    assert status == 0, output
    assert output =~ "2 tests, 0 failures"
  end

  # Starts the guide's children and kills the worker: the next worker has the program again.
  defp restart do
    """
    {:ok, _} = Supervisor.start_link(children, strategy: :one_for_one)
    System.cmd("kill", ["-9", to_string(Bridge.get_status().worker_pid)])
    deadline = System.monotonic_time(:millisecond) + 60_000
    wait = fn wait ->
      if System.monotonic_time(:millisecond) > deadline, do: raise("no restart within a minute")
      if Bridge.get_status()[:stats][:restarts] < 3, do: Process.sleep(10) && wait.(wait)
    end
    wait.(wait)
    {:ok, %{"programs" => [_]}} = Bridge.call(:list_programs)
    {:ok, %{"inherited" => ["qa"]}} = Bridge.call(:list_programs, %{}, session_id: "ann")
    IO.puts("restarted: ok")
    """
  end

  # The adapter of the configuration is that of the guide's pool.
  defp adapter do
    """
    adapter = DSPex.Adapters.Adapter.configured()
    {:ok, result} = adapter.execute_program("qa", question.inputs)
    {:ok, ["qa"]} = adapter.list_programs()
    :ok = adapter.health_check()
    IO.puts("adapter: " <> result["outputs"]["answer"])
    """
  end

  # The environment of a user, with the Python of these tests.
  defp mix(arguments, directory, env \\ []) do
    {:ok, python, _} = DSPex.PythonBridge.Python.find()

    System.cmd("mix", arguments,
      cd: directory,
      env: [{"MIX_ENV", "dev"}, {"BRIDGE_PYTHON", python}, {"MIX_BUILD_PATH", nil}] ++ env,
      stderr_to_stdout: true
    )
  end
end
