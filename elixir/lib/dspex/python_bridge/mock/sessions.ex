defmodule DSPex.PythonBridge.Mock.Sessions do
  @moduledoc """
  The commands for sessions and their data. Sessions of a mock do not expire, and none is durable.
  """

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.{Args, State}

  @longest_ttl 31_536_000
  @limit 10_000
  @operations ["set", "put", "update", "delete", "remove", "merge"]

  @spec create(map(), State.call(), State.t()) :: {map(), State.t()}
  def create(args, call, state) do
    if call.session_id == nil,
      do: raise(Args.invalid("args.session_id", "Session ID is required"))

    session = State.session(state, call)
    ttl = args["ttl_s"] || session.ttl

    if ttl <= 0 or ttl > @longest_ttl do
      message = "args.ttl_s: must be above 0 and at most #{@longest_ttl} (a year), got #{ttl}"
      raise Args.invalid("args.ttl_s", message)
    end

    if args["durable"] do
      raise Error.new(
              :not_allowed,
              "this worker has no store for durable sessions; start it with --store"
            )
    end

    quota = Map.merge(%{"programs" => nil, "bytes" => nil}, args["quota"] || session.quota)
    changed = %{session | ttl: ttl / 1, quota: quota}
    status = if session.new, do: "created", else: "exists"

    {Map.put(described(changed), "status", status),
     State.update(state, call, fn _ -> changed end)}
  end

  @spec get(map(), State.call(), State.t()) :: {map(), State.t()}
  def get(_args, call, state) do
    id = call.session_id || state.default
    state = if id == state.default, do: State.open!(state, id), else: state

    case state.sessions[id] do
      nil -> raise Error.new(:session_not_found, "session not found: #{String.slice(id, 0, 100)}")
      session -> {described(session), state}
    end
  end

  @spec list(map(), State.call(), State.t()) :: {map(), State.t()}
  def list(args, _call, state) do
    sessions = Map.values(state.sessions)

    result = %{
      "sessions" => sessions |> Enum.take(args["limit"] || 1000) |> Enum.map(&described/1),
      "total_count" => length(sessions),
      "limit" => @limit,
      "expired" => 0,
      "evicted" => 0
    }

    {result, state}
  end

  defp described(session) do
    %{
      "session_id" => session.id,
      "created_at" => session.created_at,
      "idle_s" => 0.0,
      "ttl_s" => session.ttl,
      "durable" => false,
      "programs" => length(session.programs),
      "bytes" => 0,
      "quota" => session.quota,
      "live" => true
    }
  end

  @spec cleanup_session(map(), State.call(), State.t()) :: {map(), State.t()}
  def cleanup_session(_args, call, state) do
    id = call.session_id
    {session, sessions} = Map.pop(state.sessions, id, %{programs: []})

    result = %{
      "status" => "cleaned",
      "session_id" => id,
      "programs_removed" => length(session.programs)
    }

    {result, %{state | sessions: sessions}}
  end

  @spec cleanup(map(), State.call(), State.t()) :: {map(), State.t()}
  def cleanup(_args, _call, state) do
    {%{"status" => "cleaned", "programs_removed" => programs(state)}, %{state | sessions: %{}}}
  end

  @spec reset(map(), State.call(), State.t()) :: {map(), State.t()}
  def reset(_args, _call, state) do
    result = %{
      "status" => "reset",
      "programs_cleared" => programs(state),
      # Without this one.
      "commands_reset" => state.requests - 1,
      "errors_reset" => state.failures
    }

    {result, %{state | sessions: %{}, requests: 0, failures: 0}}
  end

  @doc "Returns the number of programs in all sessions."
  @spec programs(State.t()) :: non_neg_integer()
  def programs(state) do
    state.sessions |> Map.values() |> Enum.map(&length(&1.programs)) |> Enum.sum()
  end

  @spec data(map(), State.call(), State.t()) :: {map(), State.t()}
  def data(args, call, state) do
    session = State.session(state, call)
    data = if args["key"], do: Map.take(session.data, [args["key"]]), else: session.data
    {%{"session_id" => session.id, "data" => data}, state}
  end

  @spec update_data(map(), State.call(), State.t()) :: {map(), State.t()}
  def update_data(args, call, state) do
    session = State.session(state, call)
    operation = Map.get(args, "operation", "set")

    if operation not in @operations do
      message = "unknown operation '#{operation}'; known: #{Enum.join(@operations, ", ")}"
      raise Args.invalid("args.operation", "args.operation: #{message}")
    end

    if args["key"] == nil and operation != "merge" do
      message = "args.key is required for the operation '#{operation}'"
      raise Args.invalid("args.key", message)
    end

    data = updated(operation, args["key"], args["value"], session.data)

    result = %{
      "status" => "updated",
      "session_id" => session.id,
      "operation" => operation,
      "key" => args["key"]
    }

    {result, State.update(state, call, &%{&1 | data: data})}
  end

  defp updated(operation, key, _value, data) when operation in ["delete", "remove"],
    do: Map.delete(data, key)

  defp updated("merge", key, [], data), do: updated("merge", key, %{}, data)

  defp updated("merge", nil, value, data) do
    unless is_map(value) and Enum.all?(Map.keys(value), &is_binary/1) do
      message = "args.value: merge without a key needs a map whose keys are strings"
      raise Args.invalid("args.value", message)
    end

    Map.merge(data, value)
  end

  defp updated("merge", key, value, data) do
    unless is_map(value) do
      message = "args.value: merge needs a map; set stores any value"
      raise Args.invalid("args.value", message)
    end

    unless is_map(Map.get(data, key, %{})) do
      message =
        "args.key: the value of '#{key}' is not a map, so nothing can be merged into it; " <>
          "set replaces it"

      raise Args.invalid("args.key", message)
    end

    Map.update(data, key, value, &Map.merge(&1, value))
  end

  defp updated(_set, key, value, data), do: Map.put(data, key, value)
end
