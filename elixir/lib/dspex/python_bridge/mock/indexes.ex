defmodule DSPex.PythonBridge.Mock.Indexes do
  @moduledoc """
  Indexes of texts by their vectors. The vectors of texts are made up from their words, whichever embedder
  is configured, so texts with words in common are similar. Embedders of the host are not called.
  """

  alias DSPex.PythonBridge.Mock.{Args, Models, State}

  # Of made-up vectors.
  @dimensions 64
  @ways ["query", "queries", "vector", "vectors"]

  @spec configure(map(), State.call(), State.t()) :: {map(), State.t()}
  def configure(%{"model" => model} = args, call, state) do
    name = args["name"]

    if name == "offline",
      do: raise(Args.invalid("args.name", "args.name: offline is the built-in embedder"))

    [head | _] = String.split(args["provider"] || model, "/")

    model =
      if head in ["offline", "host"],
        do: model,
        else: Models.full_name!(model, args["provider"], nil)

    put =
      &Map.update(&1, :embedders, %{name => model}, fn known -> Map.put(known, name, model) end)

    result = %{"status" => "configured", "embedder" => name || "default", "model" => model}

    if call.session_id in [nil, state.default],
      do: {result, put.(state)},
      else: {result, State.update(state, call, put)}
  end

  @spec create(map(), State.call(), State.t()) :: {map(), State.t()}
  def create(%{"index_id" => id, "texts" => texts} = args, call, state) do
    existing = own(id, call, state)
    if_exists = args["if_exists"] || "error"

    cond do
      existing != nil and if_exists == "error" ->
        line = "args.index_id: the session already has an index '#{id}'"
        raise Args.invalid("args.index_id", line, %{"exists" => true})

      existing != nil and if_exists == "keep" ->
        {Map.put(described(existing), "status", "exists"), state}

      true ->
        given = args["vectors"]
        embedder = if given, do: args["embedder"], else: args["embedder"] || ""
        check_embedder!(embedder, call, state)

        index = %{
          id: id,
          texts: texts,
          vectors: vectors!(texts, given),
          metric: args["metric"] || "cosine",
          embedder: embedder,
          created_at: State.now()
        }

        status = if existing, do: "replaced", else: "created"
        {Map.put(described(index), "status", status), put(index, call, state)}
    end
  end

  @spec add(map(), State.call(), State.t()) :: {map(), State.t()}
  def add(%{"index_id" => id, "texts" => texts} = args, call, state) do
    index = own!(id, call, state)

    if args["vectors"] == nil and index.embedder == nil do
      line =
        "args.vectors: required, because the index was created from vectors without an embedder"

      raise Args.invalid("args.vectors", line)
    end

    vectors = vectors!(texts, args["vectors"])
    for vector <- vectors, do: check_size!(vector, index, "args.vectors")
    index = %{index | texts: index.texts ++ texts, vectors: index.vectors ++ vectors}
    {Map.put(described(index), "status", "added"), put(index, call, state)}
  end

  @spec search(map(), State.call(), State.t()) :: {map(), State.t()}
  def search(%{"index_id" => id} = args, call, state) do
    way =
      case Enum.filter(@ways, &(args[&1] != nil)) do
        [way] ->
          way

        given ->
          ways = if given == [], do: "none of them", else: Enum.join(given, " and ")
          line = "args: expected one of query, queries, vector and vectors, not #{ways}"
          raise Args.invalid("args", line)
      end

    index = visible!(id, call, state)

    found =
      for query <- queries!(way, args[way], index), do: nearest(index, query, args["k"] || 5)

    result = %{
      "indices" => Enum.map(found, fn rows -> Enum.map(rows, &elem(&1, 1)) end),
      "scores" => Enum.map(found, fn rows -> Enum.map(rows, &elem(&1, 0)) end)
    }

    passages =
      Enum.map(found, fn rows -> Enum.map(rows, fn {_, i} -> Enum.at(index.texts, i) end) end)

    result = if args["tensors"], do: result, else: Map.put(result, "passages", passages)

    if way in ["query", "vector"],
      do: {Map.new(result, fn {key, [rows]} -> {key, rows} end), state},
      else: {result, state}
  end

  defp queries!(way, value, index) when way in ["query", "queries"] do
    if index.embedder == nil do
      line =
        "args.#{way}: the index was created from vectors without an embedder, so it finds vectors only"

      raise Args.invalid("args.#{way}", line)
    end

    value |> List.wrap() |> Enum.map(&made_up/1)
  end

  defp queries!("vector", vector, index), do: queries!("vector", [vector], index, "args.vector")

  defp queries!("vectors", vectors, index),
    do: queries!("vectors", vectors, index, "args.vectors")

  defp queries!(_way, vectors, index, path) do
    for vector <- rows!(vectors, path) do
      check_size!(vector, index, path)
      vector
    end
  end

  defp nearest(index, query, count) do
    index.vectors
    |> Enum.with_index()
    |> Enum.map(fn {vector, i} -> {score(index.metric, vector, query), i} end)
    |> Enum.sort_by(fn {score, i} -> {-score, i} end)
    |> Enum.take(count)
  end

  defp score("dot", one, other), do: dot(one, other)

  defp score("cosine", one, other),
    do: dot(one, other) / max(:math.sqrt(dot(one, one) * dot(other, other)), 1.0e-10)

  defp dot(one, other),
    do: Enum.zip_reduce(one, other, 0.0, fn x, y, sum -> sum + x * y end)

  @spec delete(map(), State.call(), State.t()) :: {map(), State.t()}
  def delete(%{"index_id" => id}, call, state) do
    own!(id, call, state)
    remove = fn session -> Map.update!(session, :indexes, &List.keydelete(&1, id, 0)) end
    {%{"index_id" => id, "status" => "deleted"}, State.update(state, call, remove)}
  end

  @spec list(map(), State.call(), State.t()) :: {map(), State.t()}
  def list(_args, call, state) do
    own = State.session(state, call).indexes
    result = %{"indexes" => for({_, index} <- own, do: described(index))}

    case State.inherited(state, call) do
      nil ->
        {result, state}

      default ->
        ids =
          for {id, _} <- Map.get(default, :indexes, []), not List.keymember?(own, id, 0), do: id

        {Map.put(result, "inherited", ids), state}
    end
  end

  @spec embed(map(), State.call(), State.t()) :: {map(), State.t()}
  def embed(%{"texts" => texts} = args, call, state) do
    check_embedder!(args["embedder"], call, state)

    binary =
      for text <- texts, number <- made_up(text), into: <<>>, do: <<number::float-32-little>>

    {%{"vectors" => {:tensor, {:f, 32}, {length(texts), @dimensions}, binary}}, state}
  end

  defp check_embedder!(name, _call, _state) when name in [nil, "", "offline"], do: :ok
  defp check_embedder!("host/" <> _, _call, _state), do: :ok

  defp check_embedder!(name, call, state) do
    known =
      for each <- [State.session(state, call), state, State.inherited(state, call) || %{}],
          do: Map.get(each, :embedders, %{})

    unless Enum.any?(known, &is_map_key(&1, name)) do
      line =
        "args.embedder: no embedder '#{name}' is configured; offline and host/NAME need no configuration"

      raise Args.invalid("args.embedder", line)
    end
  end

  defp vectors!(texts, nil), do: Enum.map(texts, &made_up/1)

  defp vectors!(texts, given) do
    rows = rows!(given, "args.vectors")

    if length(rows) != length(texts) do
      line = "args.vectors: #{length(rows)} vectors for #{length(texts)} texts"
      raise Args.invalid("args.vectors", line)
    end

    rows
  end

  # Tensors, or lists of lists of numbers.
  defp rows!({:tensor, {:f, bits}, shape, binary}, _path) do
    numbers = for <<number::float-little-size(bits) <- binary>>, do: number
    width = shape |> Tuple.to_list() |> List.last()
    Enum.chunk_every(numbers, width)
  end

  defp rows!([{:tensor, _, _, _} = tensor], path), do: rows!(tensor, path)

  defp rows!([first | _] = rows, path) when is_list(first) do
    for {row, index} <- Enum.with_index(rows), length(row) != length(first) do
      line = "#{length(row)} numbers, where the vectors before it have #{length(first)}"
      raise Args.invalid("#{path}[#{index}]", "#{path}[#{index}]: #{line}")
    end

    rows
  end

  defp rows!(_other, path),
    do: raise(Args.invalid(path, "#{path}: expected floats (f16, f32, f64), or a list of lists"))

  defp check_size!(vector, index, path) do
    size = length(hd(index.vectors))

    if length(vector) != size do
      line = "#{path}: vectors of #{length(vector)} numbers; those of the index have #{size}"
      raise Args.invalid(path, line)
    end
  end

  defp made_up(text) do
    words = text |> String.downcase() |> String.split(~r/\W+/u, trim: true)
    counts = Enum.frequencies_by(words, &:erlang.phash2(&1, @dimensions))
    for place <- 0..(@dimensions - 1), do: Map.get(counts, place, 0) / 1
  end

  defp described(index) do
    %{
      "index_id" => index.id,
      "texts" => length(index.texts),
      "dimensions" => length(hd(index.vectors)),
      "metric" => index.metric,
      "embedder" => if(index.embedder == "", do: "default", else: index.embedder),
      "bytes" => 0,
      "created_at" => index.created_at
    }
  end

  defp put(index, call, state) do
    State.update(state, call, fn session ->
      Map.update!(session, :indexes, &List.keystore(&1, index.id, 0, {index.id, index}))
    end)
  end

  defp own(id, call, state) do
    with {_, index} <- List.keyfind(State.session(state, call).indexes, id, 0), do: index
  end

  defp own!(id, call, state) do
    visible!(id, call, state)

    own(id, call, state) ||
      raise Args.invalid(
              "args.index_id",
              "args.index_id: '#{id}' is an index of the default session, changed without a session_id"
            )
  end

  @doc "Returns an index of the session or of the default session. Raises `DSPex.PythonBridge.Error`."
  @spec visible!(String.t(), State.call(), State.t(), String.t()) :: map()
  def visible!(id, call, state, path \\ "args.index_id") do
    inherited = State.inherited(state, call) || %{}

    with nil <- own(id, call, state),
         nil <- List.keyfind(Map.get(inherited, :indexes, []), id, 0) do
      raise Args.invalid(path, "#{path}: there is no index '#{id}'")
    else
      {_, index} -> index
      index -> index
    end
  end
end
