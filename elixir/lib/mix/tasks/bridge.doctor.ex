defmodule Mix.Tasks.Bridge.Doctor do
  @shortdoc "Checks what the bridge needs, and says what to type"
  @moduledoc """
  Checks Elixir and OTP, finds Python and the package in it, starts a worker and asks it.

      mix bridge.doctor [--python /path/to/python]

  Prints a line for each check: `ok`, or what to type. The exit status is 1 when something that is
  needed is missing. Options that an application gives to its own bridges are not known here; its
  `config :dspex_bridge` is.
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
      fn -> {:ok, optional(Telemetry.available?(), ":telemetry", "no events are emitted")} end,
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
        ping = Bridge.call!(bridge, :ping, %{}, 5_000)
        Bridge.stop(bridge)

        if ping["dspy_available"] do
          {:ok, "a worker starts and answers (#{took} ms); DSPy is there"}
        else
          {:error, "DSPy is not there: type   #{python} -m pip install dspy-ai"}
        end

      {:error, {:shutdown, error}} ->
        {:error, error.message}
    end
  end

  defp optional(true, name, _without), do: "#{name} is there"
  defp optional(false, name, without), do: "#{name} is not there, which is fine: #{without}"
end
