defmodule Mix.Tasks.Bridge.Doctor do
  @shortdoc "Checks what the bridge needs, and says what to type"
  @moduledoc """
  Checks Elixir and OTP, finds Python and the package in it, starts a worker, asks it, and imports
  DSPy, which takes some seconds.

      mix bridge.doctor [--python /path/to/python]

  Prints a line for each check: `ok`, or what is wrong and what to type. The exit status is 0 when
  everything that is needed works, and 1 when something does not, for CI. Options that an application
  gives to its own bridges are not known here; its `config :dspex_bridge` is.
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

  # Each check but the first and the last two needs what the one before found: the interpreter.
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

  # Imported as a worker imports it: that a package can be found says nothing of whether it works.
  defp dspy(python) do
    with {:ok, version} <- Python.dspy(python), do: {:ok, "DSPy #{version} imports"}
  end

  defp optional(true, name, _without), do: "#{name} is there"
  defp optional(false, name, without), do: "#{name} is not there, which is fine: #{without}"
end
