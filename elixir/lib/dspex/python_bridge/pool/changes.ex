defmodule DSPex.PythonBridge.Pool.Changes do
  @moduledoc """
  Which changes of the shared state a new worker needs: the last one of each program, of each tool, of
  each key of the data, of each language model and embedder, of each index, and of each logger's level.
  What was imported into a program or added to an index is made superfluous by a new one. What other
  commands have changed is not known here, so all of their changes are kept.

  A change is a command with its args. Pure functions; a list of entries
  `{number, key, kind, command, args}` is in reverse order: it begins with the change to be made last.
  """

  alias DSPex.PythonBridge.Pool

  @type key :: {atom(), term()}
  @type entry :: {pos_integer(), key(), Pool.kind(), String.t(), map()}

  @doc """
  Adds a change to entries, without those that it makes superfluous. Each new entry gets a number,
  from `next` on, and takes the place of a tool that it replaces: programs may need that tool.
  """
  @spec add([entry()], Pool.kind(), String.t(), map(), pos_integer()) ::
          {[entry()], pos_integer()}
  def add(entries, kind, command, args, next) do
    {superfluous, more} = change(command, with_text_keys(args), next)

    Enum.reduce(more, {without(entries, superfluous), next}, fn {key, args}, {entries, next} ->
      {put(entries, {next, key, kind, command, args}), next + 1}
    end)
  end

  defp put(entries, {_, key, _, _, _} = entry) do
    case List.keymember?(entries, key, 1) do
      true -> List.keyreplace(entries, key, 1, entry)
      false -> [entry | entries]
    end
  end

  @doc "Returns what is left when the sessions have ended, the default session included."
  @spec without_sessions([entry()]) :: [entry()]
  def without_sessions(entries) do
    Enum.filter(entries, fn {_, _, kind, _, _} -> kind == :everyone end)
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

  defp without(entries, []), do: entries

  defp without(entries, superfluous) do
    Enum.reject(entries, fn entry -> superfluous?(elem(entry, 1), superfluous) end)
  end

  # A part belongs to a program or an index.
  defp superfluous?({:part, {whole, _}} = key, superfluous),
    do: key in superfluous or whole in superfluous

  defp superfluous?(key, superfluous), do: key in superfluous or elem(key, 0) in superfluous

  # Returns the keys, or first elements of keys, of what is superfluous, and what is added.
  defp change(command, args, _next) when command in ["create_program", "create_gemini_program"] do
    key = {:program, args["id"]}
    {[key], [{key, args}]}
  end

  defp change("delete_program", args, _next), do: {[{:program, args["program_id"]}], []}

  # A document of DSPy has only what a program has learned.
  defp change("import_program", args, _next) do
    program = {:program, args["program_id"]}
    key = if defines?(args["document"]), do: program, else: {:part, {program, :learned}}
    {[key], [{key, args}]}
  end

  defp change("load_program", args, _next) do
    key = {:part, {{:program, args["program_id"]}, args["path"]}}
    {[key], [{key, args}]}
  end

  defp change("create_index", args, _next) do
    key = {:index, args["index_id"]}
    {[key], [{key, args}]}
  end

  defp change("delete_index", args, _next), do: {[{:index, args["index_id"]}], []}

  defp change("add_to_index", args, next),
    do: {[], [{{:part, {{:index, args["index_id"]}, next}}, args}]}

  defp change("register_tools", %{"replace" => true} = args, _next) do
    {[:tool, :tools], [{{:tools, :all}, args}]}
  end

  defp change("register_tools", args, _next) do
    {[],
     for(tool <- List.wrap(args["tools"]), do: {{:tool, name(tool)}, %{args | "tools" => [tool]}})}
  end

  defp change("update_session_data", args, _next), do: data(operation(args), args["key"], args)

  defp change(command, args, _next) when command in ["configure_lm", "configure_embedder"] do
    key = {if(command == "configure_lm", do: :model, else: :embedder), args["name"]}
    {[key], [{key, args}]}
  end

  defp change("set_log_level", args, _next) do
    key = {:log_level, args["logger"]}
    {[key], [{key, args}]}
  end

  defp change(_command, args, next), do: {[], [{{:other, next}, args}]}

  defp defines?(document) when is_map(document) do
    metadata = document["metadata"] || document[:metadata]
    is_map(metadata) and (metadata["bridge"] || metadata[:bridge]) != nil
  end

  defp defines?(_document), do: false

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
