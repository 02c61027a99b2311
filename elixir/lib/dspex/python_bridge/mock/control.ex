defmodule DSPex.PythonBridge.Mock.Control do
  @moduledoc """
  The commands of every worker that change nothing: whether it answers, what it can do, statistics.
  """

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.{Args, Declarations, Sessions, State}

  @sections ["commands", "sessions", "process", "histograms", "worker"]

  @max_frame 64 * 1024 * 1024

  @doc "Returns the result of a command, or raises `DSPex.PythonBridge.Error`."
  @spec run(String.t(), map(), State.t()) :: map()
  def run("ping", _args, _state) do
    result = %{
      "status" => "ok",
      "timestamp" => State.now(),
      "dspy_available" => true,
      "gemini_available" => false,
      "uptime" => uptime(),
      "mode" => "standalone"
    }

    result
  end

  # Without the process id, which is that of the BEAM: a host may kill that process.
  def run("hello", args, _state) do
    offers = for {name, true} <- args["offers"] || %{}, do: name
    accepted = Enum.filter(["buffers", "logs", "tools"], &(&1 in offers))

    %{
      "version" => version(),
      "adapter" => "dspy",
      "accepted" => accepted,
      "max_frame" => @max_frame
    }
  end

  def run("describe", _args, _state) do
    commands =
      for {name, {lane, idempotent, _}} <- Declarations.all(), into: %{} do
        {name,
         %{
           "lane" => lane,
           "idempotent" => idempotent,
           "args" => %{"type" => "object"},
           "help" => ""
         }}
      end

    result = %{
      "version" => version(),
      "adapter" => "dspy",
      "formats" => ["json", "etf"],
      "max_frame" => @max_frame,
      "commands" => commands,
      "errors" => %{}
    }

    result
  end

  def run("set_log_level", args, _state) do
    %{"status" => "set", "level" => args["level"], "logger" => args["logger"]}
  end

  def run("shutdown", _args, state) do
    result = %{
      "status" => "shutting_down",
      "worker_id" => nil,
      "mode" => "standalone",
      "sessions_cleaned" => map_size(state.sessions)
    }

    result
  end

  def run("get_stats", %{"format" => format}, _state) when format != nil do
    raise Error.new(
            :not_allowed,
            "this worker was not started with --telemetry, which needs: " <>
              "pip install 'dspex-bridge[telemetry]'"
          )
  end

  def run("get_stats", args, state), do: stats(args["include"], state)

  # The worker's own process knows which calls are open.
  def run(command, args, _state) when command in ["cancel", "pause", "resume"] do
    %{"id" => args["id"], done(command) => false}
  end

  @doc "Returns the key of the result of `cancel`, `pause` and `resume`."
  @spec done(String.t()) :: String.t()
  def done("cancel"), do: "cancelled"
  def done("pause"), do: "paused"
  def done("resume"), do: "resumed"

  defp stats(nil, state) do
    %{
      "programs_count" => Sessions.programs(state),
      "sessions_count" => map_size(state.sessions),
      "command_count" => state.requests,
      "error_count" => state.failures,
      "uptime" => uptime(),
      "memory_usage" => %{"rss" => :erlang.memory(:total)},
      "dspy_available" => true,
      "gemini_available" => false,
      "commands" => %{},
      "worker" => worker(state)
    }
  end

  defp stats(sections, state) do
    for {section, index} <- Enum.with_index(sections), section not in @sections do
      known = Enum.join(@sections, ", ")
      message = "unknown section '#{section}'; known: #{known}"
      raise Args.invalid("args.include[#{index}]", message, %{"known" => @sections})
    end

    Map.take(
      %{
        "commands" => %{},
        "sessions" => [],
        "process" => %{"rss" => :erlang.memory(:total), "uptime" => uptime()},
        "worker" => worker(state)
      },
      sections
    )
  end

  defp worker(state) do
    %{
      "version" => version(),
      "pid" => own_pid(),
      "mode" => "standalone",
      "adapter" => "dspy",
      "threads" => 64,
      "threads_lost" => 0,
      "in_flight" => 0,
      "queue_depth" => 0,
      "stuck_s" => 0.0,
      "sessions" => map_size(state.sessions)
    }
  end

  defp uptime, do: :erlang.statistics(:wall_clock) |> elem(0) |> Kernel./(1000)
  defp own_pid, do: String.to_integer(System.pid())
  defp version, do: to_string(Application.spec(:dspex_bridge, :vsn) || "0")
end
