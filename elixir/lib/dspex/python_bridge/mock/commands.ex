defmodule DSPex.PythonBridge.Mock.Commands do
  @moduledoc """
  The commands of a mock: those of a worker with DSPy, with the types of their args.

  `answer/4` is a function of a request and the state of a worker. A run of a program is returned as
  what `DSPex.PythonBridge.Mock.Runs` needs.
  """

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.{Args, Models, Programs, Runs, Schemas, Sessions, State}

  @text {:nullable, :string}
  @number {:nullable, :float}
  @whole {:nullable, :integer}
  @id {:required, {:either, [:integer, :string]}}
  @program_id %{"program_id" => @text}
  @create %{
    "signature" => {:required, :any},
    "id" => @text,
    "program_type" => :string,
    "tools" => {:nullable, {:list, :string}},
    "max_iters" => {:nullable, {:whole, 1, 100}},
    "if_exists" => {:one_of, ["error", "keep", "replace"]},
    "modules" => :ignored,
    "pool_name" => :ignored
  }
  @configure %{
    "model" => @text,
    "provider" => @text,
    "type" => @text,
    "api_key" => @text,
    "api_base" => @text,
    "temperature" => @number,
    "max_tokens" => @whole,
    "timeout" => :float,
    "answers" => :any,
    "cache" => :integer,
    "retries" => :integer,
    "retry_wait" => :float,
    "retry_cap" => :float
  }
  @execute %{
    "program_id" => @text,
    "inputs" => {:map, :any},
    "options" =>
      {:nullable,
       {:struct,
        %{
          "temperature" => @number,
          "max_tokens" => @whole,
          "pool_name" => :ignored,
          "session_id" => :ignored,
          "timeout" => :ignored,
          "pool_timeout" => :ignored
        }}},
    "program_data" =>
      {:nullable,
       {:open, %{"signature" => :any, "signature_def" => :any, "program_type" => @text}}}
  }
  @quota {:struct, %{"programs" => @whole, "bytes" => @whole}}
  @levels ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

  # {lane, whether it may be repeated, types of the args}
  @commands %{
    "cancel" => {"inline", true, %{"id" => @id}},
    "cleanup" => {"end_all", true, %{}},
    "cleanup_session" => {"end_session", true, %{}},
    "configure_lm" => {"everyone", true, @configure},
    "create_gemini_program" =>
      {"session", false, Map.merge(@create, %{"signature" => :any, "model" => @text})},
    "create_program" => {"session", false, @create},
    "create_session" =>
      {"session", true,
       %{"ttl_s" => @number, "durable" => {:nullable, :boolean}, "quota" => {:nullable, @quota}}},
    "delete_program" => {"session", false, @program_id},
    "describe" => {"inline", true, %{}},
    "execute_gemini_program" => {"run", false, @execute},
    "execute_program" => {"run", false, @execute},
    "get_program_info" => {"thread", true, @program_id},
    "get_session" => {"worker", true, %{}},
    "get_session_data" => {"thread", true, %{"key" => @text}},
    "get_stats" =>
      {"inline", true,
       %{
         "include" => {:nullable, {:list, :string}},
         "limit" => :integer,
         "format" => @text
       }},
    "hello" => {"inline", true, %{"offers" => {:map, :boolean}}},
    "list_programs" => {"thread", true, %{"limit" => {:whole, 0, 1_000_000}}},
    "list_sessions" => {"worker", true, %{"limit" => {:whole, 0, 1_000_000}}},
    "pause" => {"inline", true, %{"id" => @id}},
    "ping" => {"inline", true, :unchecked},
    "register_tools" =>
      {"session", true,
       %{"tools" => {:required, {:list, Schemas.tool_type()}}, "replace" => :boolean}},
    "reset_state" => {"end_all", true, %{}},
    "resume" => {"inline", true, %{"id" => @id}},
    "set_log_level" =>
      {"inline", true, %{"level" => {:required, {:one_of, @levels}}, "logger" => @text}},
    "shutdown" => {"inline", false, %{"worker_id" => :ignored}},
    "update_session_data" =>
      {"session", true, %{"operation" => :string, "key" => @text, "value" => :any}}
  }
  @names Enum.sort(Map.keys(@commands))
  # The lanes of commands that open their session, and of those that need the id of one.
  @opening ["session", "thread", "run", "everyone"]
  @sections ["commands", "sessions", "process", "histograms", "worker"]

  @doc "Returns whether calls of a command end before the next request is read."
  @spec inline?(String.t()) :: boolean()
  def inline?(command), do: match?(%{^command => {"inline", _, _}}, @commands)

  @doc "Returns whether a worker has a command."
  @spec known?(String.t()) :: boolean()
  def known?(command), do: is_map_key(@commands, command)

  @doc """
  Answers a request: `{:ok, result, state}`, `{:error, error, state}`, or `{:run, run, state}`.
  `session_id` is the one of the envelope.
  """
  @spec answer(String.t(), term(), String.t() | nil, State.t()) ::
          {:ok, term(), State.t()} | {:error, Error.t(), State.t()} | {:run, map(), State.t()}
  def answer(command, args, session_id, state) do
    if known?(command) do
      {call, opened} = opened!(command, args, session_id, state)
      counted = %{state | requests: state.requests + 1}
      carried_out(command, args, call, %{opened | requests: counted.requests}, counted)
    else
      message = "Unknown command: #{String.slice(command, 0, 80)}"
      failed(Error.new(:unknown_command, message, %{"known" => @names}), state)
    end
  rescue
    error in Error -> failed(error, state)
  end

  # A session that a refused request has opened stays open.
  defp carried_out(command, args, call, opened, before) do
    {_lane, _, types} = @commands[command]
    args = if types == :unchecked, do: %{}, else: checked!(args, types)

    case run(command, args, call, opened) do
      {:run, run, state} -> {:run, run, settled(state, call)}
      {result, state} -> {:ok, result, settled(state, call)}
    end
  rescue
    error in Error ->
      {lane, _, _} = @commands[command]
      failed(error, if(lane in @opening, do: settled(opened, call), else: before))
  end

  defp failed(error, state), do: {:error, error, %{state | failures: state.failures + 1}}

  defp checked!(args, types),
    do: Args.checked!(args, {:struct, Map.put_new(types, "session_id", @text)})

  defp opened!(command, args, session_id, state) do
    {lane, _, _} = @commands[command]
    given = session_id || if(is_map(args), do: args["session_id"])

    if is_binary(given) or given == nil do
      id = if given == state.default and lane != "end_session", do: nil, else: given
      call = %{session_id: id}

      if lane == "end_session" and id == nil,
        do: raise(Args.invalid("args.session_id", "Session ID is required"))

      if lane in @opening,
        do: {call, State.open!(state, id || state.default)},
        else: {call, state}
    else
      checked!(%{"session_id" => given}, %{})
    end
  end

  # A session that has been created is not new to the next command.
  defp settled(state, call) do
    id = call.session_id || state.default

    case state.sessions do
      %{^id => %{new: true} = session} ->
        %{state | sessions: %{state.sessions | id => %{session | new: false}}}

      _ ->
        state
    end
  end

  defp run("configure_lm", args, call, state), do: Models.configure(args, call, state)
  defp run("create_program", args, call, state), do: Programs.create(args, call, state)

  defp run("create_gemini_program", args, call, state),
    do: Programs.create_gemini(args, call, state)

  defp run("delete_program", args, call, state), do: Programs.delete(args, call, state)
  defp run("get_program_info", args, call, state), do: Programs.info(args, call, state)
  defp run("list_programs", args, call, state), do: Programs.list(args, call, state)
  defp run("register_tools", args, call, state), do: Programs.register_tools(args, call, state)
  defp run("create_session", args, call, state), do: Sessions.create(args, call, state)
  defp run("get_session", args, call, state), do: Sessions.get(args, call, state)
  defp run("list_sessions", args, call, state), do: Sessions.list(args, call, state)
  defp run("cleanup_session", args, call, state), do: Sessions.cleanup_session(args, call, state)
  defp run("cleanup", args, call, state), do: Sessions.cleanup(args, call, state)
  defp run("reset_state", args, call, state), do: Sessions.reset(args, call, state)
  defp run("get_session_data", args, call, state), do: Sessions.data(args, call, state)
  defp run("update_session_data", args, call, state), do: Sessions.update_data(args, call, state)

  defp run("execute_" <> _, args, call, state) do
    {run, state} = Runs.prepared!(args, call, state)
    {:run, run, state}
  end

  defp run("ping", _args, _call, state) do
    result = %{
      "status" => "ok",
      "timestamp" => State.now(),
      "dspy_available" => true,
      "gemini_available" => false,
      "uptime" => uptime(),
      "mode" => "standalone"
    }

    {result, state}
  end

  defp run("hello", args, _call, state) do
    offers =
      for {name, true} <- args["offers"] || %{}, name in ["tools", "logs", "buffers"], do: name

    accepted = Enum.sort(offers)

    result = %{
      "version" => version(),
      "adapter" => "dspy",
      "accepted" => accepted,
      "pid" => own_pid()
    }

    {result, state}
  end

  defp run("describe", _args, _call, state) do
    commands =
      for {name, {lane, idempotent, _}} <- @commands, into: %{} do
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
      "max_frame" => 64 * 1024 * 1024,
      "commands" => commands,
      "errors" => %{}
    }

    {result, state}
  end

  defp run("set_log_level", args, _call, state) do
    {%{"status" => "set", "level" => args["level"], "logger" => args["logger"]}, state}
  end

  defp run("shutdown", _args, _call, state) do
    result = %{
      "status" => "shutting_down",
      "worker_id" => nil,
      "mode" => "standalone",
      "sessions_cleaned" => map_size(state.sessions)
    }

    {result, state}
  end

  defp run("get_stats", %{"format" => format}, _call, _state) when format != nil do
    raise Error.new(
            :not_allowed,
            "this worker was not started with --telemetry, which needs: " <>
              "pip install 'dspex-bridge[telemetry]'"
          )
  end

  defp run("get_stats", args, _call, state), do: {stats(args["include"], state), state}

  # The worker's own process knows which calls are open.
  defp run(command, args, _call, state) when command in ["cancel", "pause", "resume"] do
    {%{"id" => args["id"], done(command) => false}, state}
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
