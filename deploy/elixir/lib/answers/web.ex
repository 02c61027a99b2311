defmodule Answers.Web do
  @moduledoc """
  The HTTP interface, with the server of OTP.

      POST /sessions/ID?question    the body is a passage; returns the answer
      GET  /sessions/ID             returns the question that was asked last
      GET  /ready                   200 if a worker takes calls, otherwise 503
      GET  /alive                   200
  """

  require Record

  Record.defrecordp(:request, :mod, Record.extract(:mod, from_lib: "inets/include/httpd.hrl"))

  @spec child_spec(:inet.port_number()) :: Supervisor.child_spec()
  def child_spec(port) do
    %{id: __MODULE__, start: {__MODULE__, :start_link, [port]}, type: :supervisor}
  end

  @doc "Starts the server."
  @spec start_link(:inet.port_number()) :: {:ok, pid()} | {:error, term()}
  def start_link(port) do
    folder = to_charlist(System.tmp_dir!())

    options = [
      port: port,
      server_name: ~c"answers",
      server_root: folder,
      document_root: folder,
      modules: [__MODULE__],
      max_body_size: 1_000_000
    ]

    :inets.start(:httpd, options, :stand_alone)
  end

  @doc false
  def unquote(:do)(request(method: method, request_uri: uri, entity_body: body)) do
    %URI{path: path, query: query} = uri |> to_string() |> URI.parse()

    {status, text} =
      answer(
        List.to_string(method),
        String.split(path || "", "/", trim: true),
        query,
        IO.iodata_to_binary(body)
      )

    head = [
      code: status,
      content_type: ~c"text/plain; charset=utf-8",
      content_length: text |> byte_size() |> Integer.to_charlist()
    ]

    {:proceed, [{:response, {:response, head, [text]}}]}
  end

  defp answer("GET", ["alive"], _, _), do: {200, "alive\n"}

  defp answer("GET", ["ready"], _, _) do
    if Answers.ready?(), do: {200, "ready\n"}, else: {503, "no worker takes calls\n"}
  end

  defp answer("POST", ["sessions", id], query, passage) when query not in [nil, ""] do
    reply(Answers.ask(URI.decode(id), URI.decode_www_form(query), passage))
  end

  defp answer("GET", ["sessions", id], _, _), do: reply(Answers.last(URI.decode(id)))
  defp answer(_, _, _, _), do: {404, "not found\n"}

  defp reply({:ok, nil}), do: {404, "nothing was asked\n"}
  defp reply({:ok, text}), do: {200, text <> "\n"}
  defp reply({:error, %{code: :overloaded} = error}), do: {503, Exception.message(error) <> "\n"}
  defp reply({:error, error}), do: {502, Exception.message(error) <> "\n"}
end
