# Sends random terms of every kind through a Python process and back, and its terms through this one.
# Arguments: the command of that process, the number of terms each way, a seed. Prints what was compared.

defmodule Terms do
  @atoms [:ok, :error, :undefined, :"", :"with space", :ünïcode, :日本, :"é", nil, true, false,
          :a, :b, :id, String.to_atom(String.duplicate("ä", 200)), Elixir.String]

  def atoms, do: @atoms

  def any(0), do: scalar()

  def any(depth) do
    case :rand.uniform(14) do
      1 -> for _ <- count(6), do: any(depth - 1)
      2 -> List.to_tuple(for _ <- count(6), do: any(depth - 1))
      3 -> for _ <- count(6), into: %{}, do: {text(), any(depth - 1)}
      4 -> for _ <- count(4), into: %{}, do: {any(depth - 1), any(depth - 1)}
      5 -> for _ <- count(5), into: %{}, do: {Enum.random(@atoms), any(depth - 1)}
      6 -> [any(depth - 1), any(depth - 1) | improper_tail()]
      7 -> wide()
      _ -> scalar()
    end
  end

  defp wide do
    case :rand.uniform(40) do
      1 -> for n <- 1..(32 + :rand.uniform(40)), into: %{}, do: {n, text()}
      2 -> for n <- 1..(32 + :rand.uniform(40)), into: %{}, do: {"key #{n}", n}
      3 -> List.to_tuple(Enum.to_list(1..300))
      4 -> List.duplicate(7, 65_536)
      5 -> for _ <- 1..300, do: :rand.uniform(256) - 1
      6 -> %{1 => :integer, 1.0 => :float}
      7 -> %{"a" => 1, :a => 2, true => 3, 1 => 4}
      _ -> [1.5, 2]
    end
  end

  defp scalar do
    case :rand.uniform(20) do
      n when n in 1..3 -> integer()
      n when n in 4..5 -> (:rand.uniform() - 0.5) * :math.pow(10, :rand.uniform(600) - 300)
      6 -> Enum.random([0.0, -0.0, 1.0, 4.9e-324, 1.7976931348623157e308])
      n when n in 7..9 -> text()
      10 -> :crypto.strong_rand_bytes(:rand.uniform(20) - 1)
      n when n in 11..12 -> Enum.random(@atoms)
      13 -> for _ <- count(9), do: :rand.uniform(256) - 1
      14 -> bits()
      15 -> self()
      16 -> make_ref()
      17 -> hd(Port.list())
      18 -> fun()
      19 -> Enum.random([[], {}, %{}, "", 0, 255, 256, -1])
      20 -> other_node()
    end
  end

  defp integer do
    bits = Enum.random([7, 8, 9, 27, 28, 31, 32, 33, 59, 60, 63, 64, 65, 128, 2039, 2040, 2041, 5000])
    base = Bitwise.bsl(1, bits) + :rand.uniform(3) - 2
    Enum.random([base, -base, :rand.uniform(300) - 20])
  end

  defp bits do
    size = :rand.uniform(7)
    value = :rand.uniform(Bitwise.bsl(1, size)) - 1
    <<:crypto.strong_rand_bytes(:rand.uniform(4) - 1)::binary, value::size(size)>>
  end

  defp fun do
    bound = any(0)
    Enum.random([&String.upcase/1, &__MODULE__.any/1, fn -> bound end, fn x -> {x, bound, 1} end])
  end

  # A pid, a port and a reference of another node, and a pid in the old form.
  defp other_node do
    node = <<119, 5, "n@far">>

    :erlang.binary_to_term(
      Enum.random([
        <<131, 88, node::binary, 9::32, 1::32, 77::32>>,
        <<131, 120, node::binary, 1_234_567::64, 77::32>>,
        <<131, 89, node::binary, 12::32, 77::32>>,
        <<131, 90, 3::16, node::binary, 77::32, 1::32, 2::32, 3::32>>,
        <<131, 103, node::binary, 9::32, 1::32, 1>>
      ])
    )
  end

  defp improper_tail, do: Enum.random([:tail, 7, "tail", {1, 2}, 1.5])

  defp text, do: Enum.random(["id", "name", "", "größe", "日本語", "x#{:rand.uniform(1000)}",
                              String.duplicate("long ", :rand.uniform(100))])

  defp count(most), do: Enum.take(1..most, :rand.uniform(most + 1) - 1)
end

defmodule Exchange do
  def run(port, total) do
    names = Terms.atoms() |> Enum.reject(&(&1 in [nil, true, false])) |> Enum.map(&Atom.to_string/1)
    ask(port, {"atoms", names})
    batches = Enum.chunk_every(1..total, 500)
    same = batches |> Enum.map(&there_and_back(port, length(&1))) |> Enum.sum()
    IO.puts("#{total} terms of the BEAM, #{same} of them to the byte")
    theirs = batches |> Enum.with_index() |> Enum.map(&their_terms(port, &1)) |> Enum.sum()
    IO.puts("#{theirs} terms of Python")
  end

  # Returns how many terms were written in a form that must come back byte for byte.
  defp there_and_back(port, count) do
    sent =
      for _ <- 1..count do
        term = Terms.any(:rand.uniform(4))
        options = Enum.random([[], [minor_version: 0], [minor_version: 1], [minor_version: 2],
                               [:compressed], [compressed: 9, minor_version: 2]])
        {term, options, :erlang.term_to_binary(term, options)}
      end

    back = ask(port, {"terms", for({_, _, bytes} <- sent, do: bytes)})

    for {{term, options, bytes}, again} <- Enum.zip(sent, back) do
      if :erlang.binary_to_term(again) !== term, do: fail(term, bytes, again)
      exact = options == [minor_version: 2]
      if exact and again != bytes, do: fail(term, bytes, again)
      if exact, do: 1, else: 0
    end
    |> Enum.sum()
  end

  # Python compares what comes back with its own value and bytes.
  defp their_terms(port, {batch, index}) do
    terms = ask(port, {"generate", index, length(batch)})
    again = for bytes <- terms, do: bytes |> :erlang.binary_to_term([:safe]) |> :erlang.term_to_binary(minor_version: 2)
    "same" = ask(port, {"compare", index, again})
    length(terms)
  end

  defp ask(port, question) do
    Port.command(port, :erlang.term_to_binary(question))

    receive do
      {^port, {:data, answer}} -> :erlang.binary_to_term(answer, [:safe])
      {^port, {:exit_status, status}} -> exit({:python_ended, status})
    end
  end

  defp fail(term, bytes, again) do
    IO.inspect(term, limit: :infinity, label: "differs")
    IO.inspect(bytes, limit: :infinity)
    IO.inspect(again, limit: :infinity)
    System.halt(1)
  end
end

[python, script, total, seed] = System.argv()
:rand.seed(:exsss, String.to_integer(seed))

port =
  Port.open({:spawn_executable, python}, [:binary, :exit_status, {:packet, 4}, {:args, [script]}])

Exchange.run(port, String.to_integer(total))
