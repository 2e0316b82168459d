"""The domain of customers. It does not depend on the events of other services."""

from datetime import UTC, datetime

from protean import handle
from protean.exceptions import ObjectNotFoundError
from protean.fields import DateTime, Identifier, String

from .domain import domain


@domain.aggregate
class Customer:
    customer_id = Identifier(identifier=True)
    name = String(required=True, max_length=200)
    email = String(required=True, max_length=320)


@domain.aggregate
class WelcomeLetter:
    """A letter to send. Sending it twice would be visible, so events are de-duplicated."""

    customer_id = Identifier(required=True)
    email = String(required=True, max_length=320)


@domain.aggregate
class ReceivedEvent:
    """The inbox: the ids of events whose effect is committed."""

    event_id = Identifier(identifier=True)
    received_at = DateTime(required=True)


@domain.command(part_of=Customer)
class RegisterCustomer:
    customer_id = Identifier(required=True)
    name = String(required=True, max_length=200)
    email = String(required=True, max_length=320)
    # The event that caused the command.
    event_id = Identifier(required=True)


@domain.command_handler(part_of=Customer)
class CustomerCommandHandler:
    @handle(RegisterCustomer)
    def register(self, command: RegisterCustomer) -> None:
        """Commits the event id and its effect in one unit of work.

        If two processes handle the same event at the same time, the commit of the second violates the primary key
        and is rolled back. Its next attempt finds the event in the inbox.
        """
        received = domain.repository_for(ReceivedEvent)
        if _found(received, command.event_id):
            return
        received.add(ReceivedEvent(event_id=command.event_id, received_at=datetime.now(UTC)))

        customers = domain.repository_for(Customer)
        customer = _found(customers, command.customer_id)
        if customer:
            customer.name, customer.email = command.name, command.email
        else:
            customer = Customer(customer_id=command.customer_id, name=command.name, email=command.email)
        customers.add(customer)
        letter = WelcomeLetter(customer_id=command.customer_id, email=command.email)
        domain.repository_for(WelcomeLetter).add(letter)


def _found(repository, identifier):
    try:
        return repository.get(identifier)
    except ObjectNotFoundError:
        return None
