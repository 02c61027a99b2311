defmodule Answers do
  @moduledoc """
  Answers questions about texts. What was asked last in a session is kept in the session, which is
  durable: it outlives the worker, its server and this node.
  """

  alias DSPex.PythonBridge.{Bridge, Error, SessionPoolV2}

  # Of the calls that prepare a worker, in ms.
  @timeout 10_000

  @doc "Answers a question about a passage."
  @spec ask(String.t(), String.t(), String.t()) :: {:ok, String.t()} | {:error, Error.t()}
  def ask(session, question, passage) do
    durable = %{session_id: session, durable: true}
    run = %{program_id: "qa", inputs: %{question: question, passage: passage}}
    last = %{key: "last", value: question}

    with {:ok, _} <- SessionPoolV2.execute_in_session(session, :create_session, durable),
         {:ok, result} <- SessionPoolV2.execute_in_session(session, :execute_program, run),
         {:ok, _} <- SessionPoolV2.execute_in_session(session, :update_session_data, last) do
      {:ok, result["outputs"]["answer"]}
    end
  end

  @doc "Returns the question that was asked last in a session, `nil` if there is none."
  @spec last(String.t()) :: {:ok, String.t() | nil} | {:error, Error.t()}
  def last(session) do
    with {:ok, result} <- SessionPoolV2.execute_in_session(session, :get_session_data) do
      {:ok, result["data"]["last"]}
    end
  end

  @doc "Returns whether a worker takes calls."
  @spec ready?() :: boolean()
  def ready?, do: SessionPoolV2.get_pool_status().status == :running

  @doc "Prepares a worker for the program."
  @spec set_up(Bridge.bridge()) :: :ok
  def set_up(worker) do
    Bridge.call!(worker, :configure_lm, model(System.get_env("MODEL")), @timeout)
    signature = DSPex.Signature.new("question, passage -> answer")

    Bridge.call!(
      worker,
      :create_program,
      %{id: "qa", signature: signature, if_exists: "keep"},
      @timeout
    )

    :ok
  end

  defp model(nil), do: %{provider: "offline"}
  defp model(name), do: %{model: name}
end
