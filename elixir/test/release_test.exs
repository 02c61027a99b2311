defmodule DSPex.ReleaseTest do
  # An application whose supervisor has default limits survives ten killed workers, started by mix
  # and as a release.
  use ExUnit.Case, async: true

  @root File.cwd!()
  @moduletag timeout: 180_000

  setup_all do
    directory = Path.join(System.tmp_dir!(), "bridge-host-#{System.unique_integer([:positive])}")
    File.mkdir_p!(directory)
    on_exit(fn -> File.rm_rf!(directory) end)
    {_, 0} = run("mix", ["new", "host", "--sup"], directory)
    project = Path.join(directory, "host")
    mix_exs = Path.join(project, "mix.exs")
    dependency = "deps: [{:dspex_bridge, path: #{inspect(@root)}}]"
    File.write!(mix_exs, mix_exs |> File.read!() |> String.replace("deps: deps()", dependency))
    application = Path.join(@root, "test/support/host_application.exs")
    File.cp!(application, Path.join(project, "lib/host/application.ex"))
    {:ok, project: project}
  end

  test "with mix", %{project: project} do
    assert {output, 0} = run("mix", ["run", "--no-halt"], project)
    assert output =~ "survived 10 true\n"
  end

  test "as a release", %{project: project} do
    assert {_, 0} = run("mix", ["release", "--quiet"], project)
    program = Path.join(project, "_build/prod/rel/host/bin/host")
    assert {output, 0} = run(program, ["start"], project)
    assert output =~ "survived 10 true\n"
  end

  defp run(program, arguments, directory) do
    {:ok, python, _} = DSPex.PythonBridge.Python.find()

    System.cmd(program, arguments,
      cd: directory,
      env: [
        {"MIX_ENV", "prod"},
        {"BRIDGE_PYTHON", python},
        {"MIX_BUILD_PATH", nil},
        {"RELEASE_DISTRIBUTION", "none"}
      ],
      stderr_to_stdout: true
    )
  end
end
