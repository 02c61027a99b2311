defmodule Mix.Tasks.Bridge.Doctor do
  @shortdoc "Checks that the bridge can run, and explains how to fix what is missing"
  @moduledoc """
  Prints the versions of Elixir and OTP, finds Python and its package, starts and calls a worker,
  and imports DSPy, which takes some seconds.

      mix bridge.doctor [--python /path/to/python]

  Prints one line for each check: `ok`, or what is wrong and the command that fixes it. For CI,
  the exit status is 0 if everything required works, else 1. The task reads `config
  :dspex_bridge`, but not the options that an application gives to its bridges.
  """

  use Mix.Task

  alias DSPex.PythonBridge.{Bridge, JSON, Python, Telemetry}

  @requirements ["app.config"]

  @impl true
  def run(arguments) do
    {options, _} = OptionParser.parse!(arguments, strict: [python: :string])
    Application.ensure_all_started(:logger)

    checks = [
      fn -> {:ok, "Elixir #{System.version()}, OTP #{System.otp_release()}"} end,
      &python/1,
      &package/1,
      &worker/1,
      &dspy/1,
      fn -> {:ok, optional(Telemetry.load(), ":telemetry", "no events are emitted")} end,
      fn -> {:ok, optional(JSON.module() != nil, "JSON", "format: :json cannot be used")} end
    ]

    if Enum.reduce_while(checks, options[:python], &check/2) == :failed do
      exit({:shutdown, 1})
    end
  end

  # A check without arguments needs no interpreter; the others get the one that `python/1` has
  # found.
  defp check(check, python) do
    case if(is_function(check, 0), do: check.(), else: check.(python)) do
      {:ok, line} ->
        Mix.shell().info("ok      #{line}")
        {:cont, python}

      {:ok, line, python} ->
        Mix.shell().info("ok      #{line}")
        {:cont, python}

      {:error, line} ->
        Mix.shell().error("missing #{line}")
        {:halt, :failed}
    end
  end

  defp python(option) do
    with {:ok, python, from} <- Python.find(option), do: {:ok, "#{python}, from #{from}", python}
  end

  defp package(python) do
    with {:ok, version, package} <- Python.check(python) do
      {:ok, "Python #{version}, dspex-bridge #{package}"}
    end
  end

  defp worker(python) do
    Process.flag(:trap_exit, true)
    started = System.monotonic_time(:millisecond)

    case Bridge.start_link(name: nil, python: python) do
      {:ok, bridge} ->
        took = System.monotonic_time(:millisecond) - started
        answer = Bridge.call(bridge, :ping, %{}, 5_000)
        Bridge.stop(bridge)

        case answer do
          {:ok, _} -> {:ok, "a worker starts and answers (#{took} ms)"}
          {:error, error} -> {:error, "a worker starts, but does not answer: #{error.message}"}
        end

      {:error, {:shutdown, error}} ->
        {:error, error.message}
    end
  end

  # Imports DSPy as a worker does: a package that is installed may still fail to import.
  defp dspy(python) do
    with {:ok, version} <- Python.dspy(python), do: {:ok, "DSPy #{version} imports"}
  end

  defp optional(true, name, _without), do: "#{name} is available"
  defp optional(false, name, without), do: "#{name} is not available (optional): #{without}"
end
