defmodule DSPex.Pool.ChangesTest do
  use ExUnit.Case, async: true
  alias DSPex.PythonBridge.Pool.{Changes, CrashLoop}
  alias DSPex.PythonBridge.Error

  # What a new worker gets after these changes.
  defp after_changes(changes) do
    {entries, _} =
      Enum.reduce(changes, {[], 1}, fn {command, args}, {entries, next} ->
        Changes.add(entries, :all, command, args, next)
      end)

    for {_, _, _, command, args} <- Enum.reverse(entries), do: {command, args}
  end

  test "the last change of each program, model, tool and key is kept, in order" do
    assert after_changes([
             {"configure_lm", %{model: "a"}},
             {"create_program", %{id: "p"}},
             {"create_program", %{"id" => "q"}},
             {"register_tools", %{tools: [%{name: "t"}]}},
             {"configure_lm", %{model: "b"}},
             {"create_gemini_program", %{id: "p", model: "g"}},
             {"delete_program", %{program_id: "q"}},
             {"set_log_level", %{level: "INFO", logger: "x"}}
           ]) == [
             {"register_tools", %{"tools" => [%{name: "t"}]}},
             {"configure_lm", %{"model" => "b"}},
             {"create_gemini_program", %{"id" => "p", "model" => "g"}},
             {"set_log_level", %{"level" => "INFO", "logger" => "x"}}
           ]
  end

  test "what is imported into a program, or added to an index, goes with it" do
    learned = fn text -> %{document: %{"self" => text, "metadata" => %{}}, program_id: "p"} end
    whole = %{document: %{"metadata" => %{"bridge" => %{"version" => 1}}}, program_id: "p"}
    file = %{path: "p.json", program_id: "p"}

    commands = fn changes ->
      for {command, args} <- after_changes(changes), do: {command, args["n"]}
    end

    create = {"create_program", %{id: "p", n: 1}}

    assert commands.([
             create,
             {"import_program", Map.put(learned.("a"), :n, 2)},
             {"load_program", Map.put(file, :n, 3)},
             {"import_program", Map.put(learned.("b"), :n, 4)},
             {"load_program", Map.put(file, :n, 5)}
           ]) == [{"create_program", 1}, {"import_program", 4}, {"load_program", 5}]

    assert commands.([create, {"load_program", file}, {"import_program", Map.put(whole, :n, 2)}]) ==
             [{"import_program", 2}]

    assert commands.([
             create,
             {"import_program", learned.("a")},
             {"delete_program", %{program_id: "p"}}
           ]) ==
             []

    index = &%{index_id: "i", n: &1}

    assert commands.([
             {"create_index", index.(1)},
             {"add_to_index", index.(2)},
             {"add_to_index", index.(3)}
           ]) == [{"create_index", 1}, {"add_to_index", 2}, {"add_to_index", 3}]

    assert commands.([
             {"create_index", index.(1)},
             {"add_to_index", index.(2)},
             {"create_index", index.(3)}
           ]) == [{"create_index", 3}]
  end

  test "models and embedders have names" do
    assert after_changes([
             {"configure_lm", %{model: "a"}},
             {"configure_lm", %{name: "cheap", model: "b"}},
             {"configure_lm", %{name: "cheap", model: "c"}},
             {"configure_embedder", %{model: "offline"}}
           ])
           |> Enum.map(fn {_, args} -> args["model"] end) == ["a", "c", "offline"]
  end

  test "data: set, delete, merge" do
    update = fn args -> {"update_session_data", args} end

    assert after_changes([
             update.(%{key: "a", value: 1}),
             update.(%{key: :a, value: 2, operation: "put"}),
             update.(%{key: "b", value: 3}),
             update.(%{operation: :delete, key: "b"}),
             update.(%{operation: "merge", value: %{c: 4, a: 5}})
           ])
           |> Enum.map(fn {_, args} -> {args["key"], args["value"]} end)
           |> Enum.sort() == [{"a", 5}, {"c", 4}]

    assert after_changes([update.(%{key: "a", value: 1}), update.(%{operation: "delete"})]) == []
    assert Changes.merged_key("update_session_data", %{operation: "merge", key: "a"}) == "a"
    assert Changes.merged_key("update_session_data", %{key: "a"}) == nil
  end

  test "a tool takes the place of the one that it replaces, because programs may need it" do
    tools = fn names ->
      {"register_tools", %{"tools" => for(name <- names, do: %{name: name})}}
    end

    assert after_changes([
             tools.(["a", "b"]),
             {"create_program", %{id: "p", tools: ["a"]}},
             tools.(["a"]),
             tools.(["c", "b"])
           ]) == [
             tools.(["a"]),
             tools.(["b"]),
             {"create_program", %{"id" => "p", "tools" => ["a"]}},
             tools.(["c"])
           ]
  end

  test "all changes of other commands are kept, in order" do
    changes = for n <- 1..3, do: {"collect", %{"id" => "a", "key" => "b", "item" => n}}
    assert after_changes(changes ++ changes) == changes ++ changes
  end

  test "replace drops all other tools" do
    assert [{"register_tools", %{"replace" => true}}] =
             after_changes([
               {"register_tools", %{tools: [%{"name" => "a"}]}},
               {"register_tools", %{tools: [%{"name" => "b"}], replace: true}}
             ])
  end

  test "what applies to all sessions outlives them" do
    {entries, next} = Changes.add([], :everyone, "configure_lm", %{model: "a"}, 1)
    {entries, 3} = Changes.add(entries, :all, "create_program", %{id: "p"}, next)
    {entries, 4} = Changes.add(entries, :everyone, "of_an_adapter", %{}, 3)

    assert [{3, _, _, "of_an_adapter", _}, {1, _, _, "configure_lm", _}] =
             Changes.without_sessions(entries)
  end

  test "a crash loop: delays, and what does not count" do
    crashed = Error.new(:worker_crashed, "", %{"exit_status" => 70})
    killed = Error.new(:worker_crashed, "", %{"signal" => "SIGKILL"})
    ended = fn loop, error -> CrashLoop.ended(loop, 100, error, 0) end
    loops = Enum.scan(1..9, %CrashLoop{}, fn _, loop -> ended.(loop, crashed) end)
    assert Enum.map(loops, &CrashLoop.delay/1) == [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]
    grow = Enum.map(loops, &CrashLoop.may_grow?/1)
    assert grow == List.duplicate(true, 4) ++ List.duplicate(false, 5)
    assert ended.(%CrashLoop{}, killed) == %CrashLoop{}
    last = List.last(loops)
    assert CrashLoop.ended(last, 10_000, crashed, 0) == last
    assert CrashLoop.calm(last, 9_999) == last
    assert CrashLoop.delay(CrashLoop.calm(last, 10_000)) == 0

    failed = Enum.scan(1..4, %CrashLoop{}, fn _, loop -> CrashLoop.not_started(loop) end)
    assert Enum.map(failed, &CrashLoop.suspicious?/1) == [false, true, false, true]
    assert Enum.map(failed, &CrashLoop.delay/1) == [0, 100, 200, 400]
    assert CrashLoop.delay(CrashLoop.started(List.last(failed))) == 0
  end
end
