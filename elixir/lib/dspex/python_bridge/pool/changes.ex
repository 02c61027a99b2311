defmodule DSPex.PythonBridge.Pool.Changes do
  @moduledoc """
  Which changes of the shared state a new worker needs: the last one of each program, of each tool, of
  each key of the data, and of each other command.

  A change is a command with its args. Pure functions; a list of entries `{number, key, command, args}`
  has the newest first.
  """

  @type key :: {atom() | String.t(), term()}
  @type entry :: {pos_integer(), key(), String.t(), map()}

  # What applies to all sessions outlives them.
  @lasting ["configure_lm", "set_log_level"]

  @doc "Adds a change to entries, without those that it makes superfluous."
  @spec add([entry()], String.t(), map(), pos_integer()) :: {[entry()], pos_integer()}
  def add(entries, command, args, next) do
    {superfluous, more} = change(command, with_text_keys(args))
    kept = Enum.reject(entries, fn {_, key, _, _} -> superfluous?(key, superfluous) end)

    Enum.reduce(more, {kept, next}, fn {key, args}, {entries, next} ->
      {[{next, key, command, args} | entries], next + 1}
    end)
  end

  @doc "Returns what is left when the sessions have ended, the default session included."
  @spec without_sessions([entry()]) :: [entry()]
  def without_sessions(entries) do
    Enum.filter(entries, fn {_, _, command, _} -> command in @lasting end)
  end

  @doc "Returns the args of a change with keys that are strings."
  @spec with_text_keys(map()) :: map()
  def with_text_keys(args), do: Map.new(args, fn {key, value} -> {to_string(key), value} end)

  @doc "Returns the key into whose value a change of the data merges another one, or `nil`."
  @spec merged_key(String.t(), map()) :: String.t() | nil
  def merged_key("update_session_data", args) do
    args = with_text_keys(args)
    if operation(args) == "merge" and args["key"] != nil, do: to_string(args["key"])
  end

  def merged_key(_command, _args), do: nil

  defp superfluous?(key, superfluous), do: key in superfluous or elem(key, 0) in superfluous

  # Returns the keys, or first elements of keys, of what is superfluous, and what takes its place.
  defp change(command, args) when command in ["create_program", "create_gemini_program"] do
    key = {:program, args["id"]}
    {[key], [{key, args}]}
  end

  defp change("delete_program", args), do: {[{:program, args["program_id"]}], []}

  defp change("register_tools", args) do
    key = {:tools, args["tools"] |> List.wrap() |> Enum.map(&name/1) |> Enum.sort()}
    {[if(args["replace"], do: :tools, else: key)], [{key, args}]}
  end

  defp change("update_session_data", args), do: data(operation(args), args["key"], args)

  defp change(command, args) do
    key = {command, args["id"] || args["key"] || args["name"] || args["logger"]}
    {[key], [{key, args}]}
  end

  defp name(tool), do: Map.get(tool, :name) || Map.get(tool, "name")

  defp operation(%{"operation" => operation}) when operation != nil, do: to_string(operation)
  defp operation(_args), do: "set"

  defp data(operation, nil, _args) when operation in ["delete", "remove"], do: {[:data], []}

  defp data(operation, key, _args) when operation in ["delete", "remove"],
    do: {[{:data, to_string(key)}], []}

  # Its value is a map: sets each of its keys.
  defp data("merge", nil, args) do
    entries = for {key, value} <- args["value"], do: set(to_string(key), value)
    {Enum.map(entries, &elem(&1, 0)), entries}
  end

  defp data(_set, key, args) do
    entry = set(to_string(key), args["value"])
    {[elem(entry, 0)], [entry]}
  end

  defp set(key, value), do: {{:data, key}, %{"key" => key, "value" => value}}
end
